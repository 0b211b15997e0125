from .collect import Objects, Scene, SceneEvaluator
from .figures import summarize
from .page import write_report

__all__ = ["Objects", "Scene", "SceneEvaluator", "summarize", "write_report"]
