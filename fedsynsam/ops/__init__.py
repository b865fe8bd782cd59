from .sam import sam_norm, sam_perturb, sam_step

__all__ = ["sam_norm", "sam_perturb", "sam_step"]
