"""Working Papers: papers on large pre-trained models, each with a method that runs and claims that are re-measured."""

__version__ = "0.1.0"
