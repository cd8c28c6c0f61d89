"""How many branches a study has, and when they begin: the same for every training."""

PLACEBOS = 8
SHAMS = 12
REPLICATES = 3  # of an intervention
LEAD = 4  # evaluations from where branches begin to the onset
FIRST = 3  # updates after which it is measured how far an intervention moved the weights
