"""The `boxloop` command. Heavy work is done by the processes it starts, so `--help` is instant."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from compose.announcement import announced_servers
from compose.arguments import gpus_in, launch_once, parse_launch, split_config
from compose.doctor import run_doctor
from compose.dry_run import dry_run
from compose.launch_plan import Work, plan_launch, servers_override
from compose.report import write_report
from compose.supervisor import run_supervised
from shared.config.load import load_config
from shared.config.paths import user_path
from shared.console import leave_quietly, settle_streams
from shared.errors import BoxloopError, ConfigError

app = typer.Typer(
    name="boxloop",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Check and convert training data.", no_args_is_help=True)
app.add_typer(data, name="data")

LaunchKeys = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As of `boxloop up`, and overrides of the config.")
]
ServerGpus = Annotated[str | None, typer.Option(help="GPUs of the rollout servers; empty: the CPU.")]
TrainGpus = Annotated[str | None, typer.Option(help="GPU of the learner; empty: the CPU.")]
ServerPort = Annotated[str | None, typer.Option(metavar="PORT", help="Port of the first server; 0: any free one.")]

CheckpointFolder = Annotated[
    Path | None,
    typer.Option("--checkpoint", parser=user_path, metavar="FOLDER", help="Checkpoint folder; else model.model."),
]

CALIBRATED_METRICS = (
    "eval_rollout_f1_iou50",
    "eval_rollout_f1_desc_iou50",
    "eval_rollout_f1_iou50_95",
    "eval_rollout_f1_desc_iou50_95",
)

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

ConfigFile = Annotated[
    Path | None, typer.Option("--config", parser=user_path, metavar="FILE", help="YAML configuration; or config=FILE.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the config.")]

UP_HELP = """Start the rollout servers, wait until they are ready, train, and stop everything.

Give config=FILE, and as needed server_gpus=0,1,2 train_gpus=3 (empty: the CPU), cpu_servers, server_tp, server_port,
vllm_gpu_memory_utilization, wait_timeout, wait_interval,
max_restarts (of a server), disable_proxy, then any section.key=value."""


def print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"boxloop {importlib.metadata.version('boxloop')}")
        raise typer.Exit


@app.callback()
def boxloop(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train vision-language models for object detection on their own decoded answers."""


@app.command(help=UP_HELP)
def up(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="config=FILE [KEY=VALUE]...")] = None,
    config: ConfigFile = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")] = False,
) -> None:
    launch = parse_launch(arguments or (), config=config)
    if dry:
        print(dry_run(plan_launch(launch, Work())))
        return
    code = run_supervised(launch)
    write_report(load_config(launch.config, launch.overrides).training.output_dir)
    raise typer.Exit(code)


@app.command()
def serve(
    config: ConfigFile = None,
    port: Annotated[str, typer.Option(help="Port to listen on; with several servers, of the first.")] = "8000",
    gpus: Annotated[
        str | None,
        typer.Option(help="Run and watch a server for each GPU (or tensor_parallel_size GPUs); empty: one on the CPU."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Run one rollout server in this terminal, or several that are watched and restarted."""
    if gpus is None:
        config, others = split_config(config, overrides or ())
        _become("rollout_server", "--config", str(config), "--port", str(port), *others)
    launch = parse_launch(overrides or (), config=config, server_gpus=gpus, server_port=port)
    raise typer.Exit(run_supervised(launch, work=None))


@app.command()
def train(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Run the learner alone, against running servers: those of the config, or of `serve --gpus` in its output_dir."""
    config, arguments = split_config(config, overrides or ())
    loaded = load_config(config, arguments)
    if not loaded.rollout.vllm.server.servers and (addresses := announced_servers(loaded)):
        arguments += (servers_override(addresses),)
    _become("learner", "--config", str(config), *arguments)


@app.command()
def doctor(
    arguments: LaunchKeys = None,
    config: ConfigFile = None,
    server_gpus: ServerGpus = None,
    train_gpus: TrainGpus = None,
    server_port: ServerPort = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the values that were written, and where.")] = False,
    origins: Annotated[bool, typer.Option("--origins", help="The same, with the defaults among them.")] = False,
) -> None:
    """Check configuration, data, model, machine and servers; every failure with its cure, and exit code 1.

    Takes what `boxloop up` takes, config=FILE too.
    """
    launch = parse_launch(
        arguments or (), config=config, server_gpus=server_gpus, train_gpus=train_gpus, server_port=server_port
    )
    values: Literal["all", "written", "none"] = "all" if origins else "written" if verbose else "none"
    raise typer.Exit(run_doctor(launch, Console(), values=values))


@app.command(name="eval")
def evaluate(
    config: ConfigFile = None,
    checkpoint: CheckpointFolder = None,
    arguments: LaunchKeys = None,
    server_gpus: ServerGpus = None,
    train_gpus: TrainGpus = None,
    server_port: ServerPort = None,
    plain: Annotated[bool, typer.Option("--plain", help="Leave the checkpoint's operating point unused.")] = False,
) -> None:
    """Decode the validation set and score it: precision, recall, F1, COCO AP, pictures.

    At the operating point that `boxloop calibrate` left beside the checkpoint, if it did.
    """
    gpus = {"server_gpus": server_gpus, "train_gpus": train_gpus}
    launch = launch_once(checkpoint, arguments or (), config=config, server_port=server_port, **gpus)
    told = ("--evaluate", "--plain") if plain else ("--evaluate",)
    raise typer.Exit(run_supervised(launch, Work("evaluate", arguments=told, resolved_name="config.evaluate.yaml")))


@app.command()
def calibrate(
    config: ConfigFile = None,
    checkpoint: CheckpointFolder = None,
    arguments: LaunchKeys = None,
    metric: Annotated[str, typer.Option(help="What is to be highest.")] = CALIBRATED_METRICS[0],
    server_gpus: ServerGpus = None,
    train_gpus: TrainGpus = None,
    server_port: ServerPort = None,
) -> None:
    """Find the bias on the stop and the score threshold at which a metric is highest on the validation set.

    One decode serves all of them. What is found is kept beside the checkpoint; `boxloop eval` decodes at it.
    """
    if metric not in CALIBRATED_METRICS:
        raise ConfigError(f"--metric {metric} cannot be calibrated for; use {', '.join(CALIBRATED_METRICS)}")
    gpus = {"server_gpus": server_gpus, "train_gpus": train_gpus}
    launch = launch_once(checkpoint, arguments or (), config=config, server_port=server_port, **gpus)
    work = Work("calibrate", arguments=("--calibrate", metric), resolved_name="config.calibrate.yaml")
    raise typer.Exit(run_supervised(launch, work))


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(parser=user_path, metavar="IMAGE|DIR|JSONL", help="What to predict for.")],
    model: Annotated[str, typer.Option(metavar="CHECKPOINT", help="Folder of a checkpoint, or a hub id.")],
    out: Annotated[
        Path | None, typer.Option(parser=user_path, metavar="FOLDER", help="New folder; else predictions, -2, …")
    ] = None,
    engine: Annotated[str, typer.Option(help="Decoding engine: hf or vllm.")] = "hf",
    classes: Annotated[str, typer.Option(metavar="A,B,C", help="Keep only objects of these names.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Leave the checkpoint's operating point unused.")] = False,
    server_gpus: ServerGpus = None,
) -> None:
    """Pictures with boxes, names and scores drawn, and COCO results. Needs no configuration.

    Exit code 1 when a picture failed; the others are there.
    """
    from compose.predict import Wish, run_predict

    gpus = gpus_in(server_gpus or "")
    wish = Wish(source, model, out, engine, classes, is_plain=plain, server_gpus=gpus)
    raise typer.Exit(run_predict(wish, Console(stderr=True)))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(parser=user_path, help="Run directory.")]) -> None:
    """Write one self-contained HTML page about a run."""
    _become("learner.reporting.report", str(run_dir))


@app.command(context_settings=PASS_THROUGH, add_help_option=False)
def init(context: typer.Context) -> None:
    """Give a stock Qwen3-VL checkpoint the coordinate tokens that training needs."""
    _become("learner.checkpoints.init", *context.args)


@app.command(context_settings=PASS_THROUGH, add_help_option=False)
def export(context: typer.Context) -> None:
    """Write a plain Hugging Face checkpoint, adapters merged, for transformers and vLLM."""
    _become("learner.checkpoints.export", *context.args)


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Roughly how long it trains, on two cores.", min=0.1)] = 5.0,
    engine: Annotated[str, typer.Option(help="Decoding engine: hf or vllm.")] = "hf",
    seed: Annotated[int, typer.Option(help="Seed of data, model and order.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(parser=user_path, metavar="FOLDER", help="Folder for everything the demo writes.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="plain, or fused: one token ends an object and opens the next.")
    ] = "plain",
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Whole annotations in Stage 2 also from 18 minutes on; below it always is so."),
    ] = False,
) -> None:
    """The whole story on a CPU: data, a tiny model, Stage 1, ways to train on from it in equal time, a report."""
    from compose.demo import run_demo

    code = run_demo(minutes=minutes, engine=engine, seed=seed, out=out, tokenizer=tokenizer, is_whole=whole)
    raise typer.Exit(code)


@data.command("check", context_settings=PASS_THROUGH, add_help_option=False)
def data_check(context: typer.Context) -> None:
    """Validate JSONL files."""
    _become("learner.data.check", *context.args)


@data.command("from", context_settings=PASS_THROUGH, add_help_option=False)
def data_from(context: typer.Context) -> None:
    """Convert annotations: COCO, LVIS, YOLO, Pascal VOC, labelme, CVAT, Hugging Face folders."""
    _become("learner.data.from_dataset", *context.args)


@data.command("from-coco", context_settings=PASS_THROUGH, add_help_option=False)
def data_from_coco(context: typer.Context) -> None:
    """Convert COCO or LVIS JSON, images in a folder that is named."""
    _become("learner.data.from_coco", *context.args)


def main() -> None:
    """Entry point: errors of ours and of the system are one message and an exit code, never a traceback."""
    settle_streams()
    try:
        app()
    except BrokenPipeError:
        leave_quietly()
    except (BoxloopError, OSError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code if isinstance(error, BoxloopError) else BoxloopError.exit_code)


def _become(module: str, *arguments: str) -> NoReturn:
    """Replace this process, so that signals and the exit code are the started one's."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
