from .collect import Objects, Scene, SceneEvaluator
from .figures import summarize
from .page import page_template, write_report

__all__ = ["Objects", "Scene", "SceneEvaluator", "page_template", "summarize", "write_report"]
