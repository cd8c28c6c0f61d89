"""The frameworks that train a backbone: MoCo v3, SimCLR, BYOL, SwAV and supervised."""
