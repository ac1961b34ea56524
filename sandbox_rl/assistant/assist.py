"""One question, or a conversation, on the user's own files in a sandbox of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.agents.base import Agent, EpisodeRequest
from sandbox_rl.agents.messages import MessageAgent
from sandbox_rl.assistant.conversation import Conversation, converse
from sandbox_rl.assistant.files import InputFiles, SavedFiles, read_input, save_files, save_trajectory
from sandbox_rl.assistant.keyboard import Keyboard
from sandbox_rl.assistant.settings import AssistantSettings
from sandbox_rl.assistant.view import TerminalView
from sandbox_rl.builders import build_toolbox
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.outputs import check_place
from sandbox_rl.policies.openai_chat import ChatClient, EndpointSettings
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.config import NetworkSettings
from sandbox_rl.tasks.prompts import load_prompt_set, render
from sandbox_rl.types import Message, Reward, Rollout, Task

NAME = "assistant"
"""Of the task and the episode in the trajectory."""


@dataclass(frozen=True, slots=True)
class AssistRequest:
    """What the user asked for.

    Args:
        question: None to have it typed (interactive only).
        endpoint: None to load `AssistantSettings.model` in this process.
        input: a directory or a file to copy in.
        output: where results go; None makes `runs/assistant`, `runs/assistant-2` …
    """

    question: str | None
    domain: str = "general"
    endpoint: EndpointSettings | None = None
    input: Path | None = None
    output: Path | None = None
    interactive: bool = False


@dataclass(frozen=True, slots=True)
class Assisted:
    """What came of it, and where it lies."""

    conversation: Conversation
    directory: Path
    trajectory: str
    saved: SavedFiles


def assist(request: AssistRequest, settings: AssistantSettings, view: TerminalView) -> Assisted | None:
    """Run the conversation and save what there is; None if the user typed nothing at all.

    Raises:
        UserError: settings, files, model, endpoint or machine cannot be used.
        SandboxFault: no sandbox could be made.
        KeyboardInterrupt: interrupted before there was anything to save.
    """
    check_place(request.output or Path("runs"), "--output")
    load_prompt_set(request.domain, [Path(directory) for directory in settings.prompts])
    files = _read_files(request, settings, view)
    agent = _agent(request, settings, view)
    done = asyncio.run(_run(request, settings, files, agent, view))
    if done is None:
        return None
    task, conversation = done
    directory = request.output or RunDirectory.new(Path("runs"), "assistant").path
    directory.mkdir(parents=True, exist_ok=True)
    name = save_trajectory(
        directory,
        Rollout(conversation.trajectory, Reward(None, detail="not scored"), task),
        model=request.endpoint.model if request.endpoint else settings.model.path,
        base_url=request.endpoint.base_url if request.endpoint else None,
        interrupted=conversation.interrupted,
        settings=settings.model_dump(mode="json", exclude={"model"}),
    )
    return Assisted(conversation, directory, name, save_files(directory, conversation.files))


def assistant_prompt(task: Task, settings: AssistantSettings) -> tuple[Message, ...]:
    """The messages of a task's prompt, as in training and evaluation."""
    return render(task, load_prompt_set(task.domain, [Path(directory) for directory in settings.prompts]))


async def _run(
    request: AssistRequest, settings: AssistantSettings, files: InputFiles, agent: Agent, view: TerminalView
) -> tuple[Task, Conversation] | None:
    keyboard = Keyboard()

    async def typed() -> str | None:
        view.ask()
        return await keyboard.line()

    question = request.question if request.question is not None else await typed()
    if question is None:
        return None
    task = Task(NAME, question, answer="", files=files.files, domain=request.domain)
    try:
        conversation = await converse(
            EpisodeRequest(NAME, task, settings.seed),
            assistant_prompt(task, settings),
            backend=_backend(settings, view),
            agent=agent,
            toolbox=build_toolbox(settings),
            viewer=view,
            next_message=typed if request.interactive else None,
            limits=settings.episode,
            sampling=settings.sampling,
            max_output_bytes=int(settings.max_output_mb * (1 << 20)),
        )
    except ValueError as error:  # the sandbox's own limits refuse the files
        raise DataError(f"--input {request.input}: {error}") from error
    finally:
        view.close()
    return task, conversation


def _read_files(request: AssistRequest, settings: AssistantSettings, view: TerminalView) -> InputFiles:
    if request.input is None:
        return InputFiles({})
    files = read_input(request.input, max_bytes=int(settings.max_input_mb * (1 << 20)))
    view.say_some("Not copied in", files.skipped)
    return files


def _agent(request: AssistRequest, settings: AssistantSettings, view: TerminalView) -> Agent:
    if request.endpoint is not None:
        return MessageAgent(ChatClient(request.endpoint))
    if settings.model.path == "tiny" and not Path("tiny").is_dir():
        raise ConfigError(
            "--model is missing: expected a directory or a Hub id (with --base-url the name of a model there)"
        )
    view.say(f"Loading {settings.model.path} …", "dim")
    from sandbox_rl.assistant.local import load_agent  # torch takes seconds

    return load_agent(settings)  # what is wrong with a model is said before a sandbox is made


def _backend(settings: AssistantSettings, view: TerminalView) -> SandboxBackend:
    """A single sandbox is made on this machine, also where a recipe has a cluster."""
    sandbox = settings.sandbox.on_this_machine()
    if isinstance(sandbox, NetworkSettings) and sandbox.network != "off":
        reach = ", ".join(sandbox.allowlist) or "every public host"
        view.say(f"Network: the sandbox may reach {reach}", "yellow")
    return sandbox.backend()
