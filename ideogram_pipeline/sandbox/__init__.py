"""A local fal: it speaks the queue's protocol and draws the pictures itself, for no money and with no account.

What belongs here: everything that lets the whole pipeline run where there is no fal. What the sandbox draws is
marked as such in the pixels and in the file. Knows the ``ideogram`` room and nothing else of the project.
"""

from ideogram_pipeline.sandbox.app import create_app
from ideogram_pipeline.sandbox.config import Fault, FaultKind, SandboxSettings
from ideogram_pipeline.sandbox.control import Change, RecordedRequest, Stats
from ideogram_pipeline.sandbox.server import RunningSandbox, environment, running_sandbox, serve
from ideogram_pipeline.sandbox.state import forget_uploads

__all__ = [
    "Change",
    "Fault",
    "FaultKind",
    "RecordedRequest",
    "RunningSandbox",
    "SandboxSettings",
    "Stats",
    "create_app",
    "environment",
    "forget_uploads",
    "running_sandbox",
    "serve",
]
