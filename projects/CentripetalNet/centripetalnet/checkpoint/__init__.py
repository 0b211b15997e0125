from .checkpointer import CentripetalNetCheckpointer

__all__ = ["CentripetalNetCheckpointer"]
