"""Name the sources of what is said for and against remedies."""

# name and address; "abstract" means that nothing more was read
SOURCES = {
    "mocov3-4.1": ("Chen, Xie, He 2021, section 4.1", "https://arxiv.org/abs/2104.02057"),
    "mocov3-4.2": ("Chen, Xie, He 2021, section 4.2", "https://arxiv.org/abs/2104.02057"),
    "mocov3-5": ("Chen, Xie, He 2021, section 5", "https://arxiv.org/abs/2104.02057"),
    "moco-v3#18": (
        "facebookresearch/moco-v3, issue 18",
        "https://github.com/facebookresearch/moco-v3/issues/18",
    ),
    "declip#9": (
        "Sense-GVT/DeCLIP, issue 9",
        "https://github.com/Sense-GVT/DeCLIP/issues/9",
    ),
    "wortsman-clip": (
        "Wortsman et al. 2023a (abstract)",
        "https://arxiv.org/abs/2304.13013",
    ),
    "wortsman-small": (
        "Wortsman et al. 2023b (abstract)",
        "https://arxiv.org/abs/2309.14322",
    ),
    "zhai": ("Zhai et al. 2023 (abstract)", "https://arxiv.org/abs/2303.06296"),
    "adam-spikes": ("arXiv 2506.04805 (abstract)", "https://arxiv.org/abs/2506.04805"),
    "warmup": ("arXiv 2406.09405 (abstract)", "https://arxiv.org/abs/2406.09405"),
    "xiao": ("Xiao et al. 2021 (abstract)", "https://arxiv.org/abs/2106.14881"),
    "scaled-relu": ("arXiv 2109.03810 (abstract)", "https://arxiv.org/abs/2109.03810"),
    "bigscience": (
        "BigScience training chronicles",
        "https://github.com/bigscience-workshop/bigscience",
    ),
    "opt": ("Meta's OPT-175B chronicles", "https://github.com/facebookresearch/metaseq"),
    "playbook": (
        "Deep Learning Tuning Playbook",
        "https://github.com/google-research/tuning_playbook",
    ),
    "palm": ("PaLM, Chowdhery et al. 2022", "https://arxiv.org/abs/2204.02311"),
    "olmo#266": ("allenai/OLMo, thread 266", "https://github.com/allenai/OLMo/issues/266"),
    "marin#1368": (
        "marin-community/marin, thread 1368",
        "https://github.com/marin-community/marin/issues/1368",
    ),
    "dinomaly#8": (
        "guojiajeremy/Dinomaly, issue 8",
        "https://github.com/guojiajeremy/Dinomaly/issues/8",
    ),
    "mulan": ("MULAN, appendix E", ""),
    "zclip": ("ZClip, Kumar et al. 2025", "https://arxiv.org/abs/2504.02507"),
}
