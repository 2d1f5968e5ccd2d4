import os

import torch

torch.set_num_threads(1)
os.environ["SEQMIX_CACHE"] = ""  # what a test generates is its own


def pytest_configure(config):
    # torch's, about speed: under autocast a norm's input is bfloat16 and its weight, rightly, float32
    config.addinivalue_line("filterwarnings", "ignore:Mismatch dtype between input and weight.*:UserWarning")
