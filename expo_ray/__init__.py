"""expo_ray: ExPO (arXiv 2507.02834) on Ray, vLLM and DeepSpeed. Importing it imports no engine."""

__version__ = "0.1.0"
