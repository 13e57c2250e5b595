"""``resfit pretrain``: a network from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resfit.cli.options import Device


def register(app: typer.Typer) -> None:
    """Adds the command to the app.

    Args:
        app: The command line.
    """
    app.command("pretrain")(pretrain_command)


def pretrain_command(
    source: Annotated[Path, typer.Argument(help="Folder of class folders, or a tar archive of one.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    validation: Annotated[Path | None, typer.Option(help="Folder or archive to measure on after each epoch.")] = None,
    model: Annotated[str, typer.Option(help="Name of the catalog (see `resfit models`).")] = "resnet10_tiny",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    sizes: Annotated[
        str, typer.Option(help="Progressive crops: 0:32,0.5:48 trains at 32 pixels, from half of the run at 48.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 30,
    minutes: Annotated[float | None, typer.Option(help="Length of the run by the clock, in place of --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 0.2,
    schedule: Annotated[str, typer.Option(help="cosine or one_cycle.")] = "cosine",
    weight_decay: Annotated[float, typer.Option(help="On kernels.")] = 1e-4,
    label_smoothing: Annotated[float, typer.Option(help="Share of the target spread over all classes.")] = 0.1,
    ema_decay: Annotated[float, typer.Option(help="Of the moving average of the weights.")] = 0.999,
    crop_scale: Annotated[float, typer.Option(help="Least share of the area that a crop keeps.")] = 0.35,
    flip: Annotated[bool, typer.Option(help="Mirror half of the crops left to right.")] = True,
    colour: Annotated[float, typer.Option(help="Largest change of brightness, contrast and saturation.")] = 0.0,
    rand_augment: Annotated[
        str, typer.Option(help="Number of RandAugment's changes and their magnitude (0..10), such as 2,9.")
    ] = "",
    erasing: Annotated[float, typer.Option(help="Share of the crops with a rectangle of noise.")] = 0.0,
    mixup: Annotated[float, typer.Option(help="Parameter of mixup; 0 is none.")] = 0.0,
    cutmix: Annotated[float, typer.Option(help="Parameter of CutMix; with mixup, batches take turns.")] = 0.0,
    repeats: Annotated[int, typer.Option(help="Crops of the same image in a batch.")] = 1,
    teacher: Annotated[
        str | None, typer.Option(help="A trained classifier of the same classes to learn from as well (distillation).")
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option(help="Share of the loss that the teacher makes up.", show_default="0.5 with --teacher"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the distillation.")] = 2.0,
    teacher_views: Annotated[
        int, typer.Option(help="Crops of each image for which the teacher is asked; epochs take them in turn.")
    ] = 8,
    precision: Annotated[str, typer.Option(help="float32 or mixed_bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of weights, order and crops.")] = 0,
    device: Device = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Have a GPU give the same bits each time, too. It is slower.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(help="JSON file of {class folder: name}, kept beside the weights.")
    ] = None,
    on: Annotated[
        str, typer.Option(help="local: this process. ray: --workers processes of its cluster, which share each batch.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="With --on ray: how many processes.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With --on ray: processors of each. Default: 1.")] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="With --on ray: each process has a GPU of its own.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard's files beside log.csv.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Trains a network from scratch; the same command resumes a run that was interrupted.

    Example: resfit pretrain images/ -o run --validation held-out/ --epochs 30
    """
    from resfit.cli.console import print_json
    from resfit.training.pretrain import PretrainSettings, parse_rand_augment, parse_sizes, pretrain

    settings = PretrainSettings(
        model=model,
        size=size,
        sizes=parse_sizes(sizes),
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        ema_decay=ema_decay,
        crop_scale=crop_scale,
        flip=flip,
        colour=colour,
        rand_augment=parse_rand_augment(rand_augment),
        erasing=erasing,
        mixup=mixup,
        cutmix=cutmix,
        repeats=repeats,
        distillation=(0.5 if teacher else 0.0) if distillation is None else distillation,
        temperature=temperature,
        teacher_views=teacher_views,
        precision=precision,
        seed=seed,
    )
    options: dict[str, Any] = {
        "validation": validation,
        "settings": settings,
        "labels": labels,
        "teacher": teacher,
        "tensorboard": tensorboard,
        "deterministic": deterministic,
    }
    if on not in ("local", "ray"):
        raise typer.BadParameter(f"must be local or ray. Received: {on!r}.", param_hint="'--on'")
    if on == "ray":
        from resfit.scale.training import pretrain_on_ray

        result = pretrain_on_ray(source, output, workers=workers or 2, threads=threads, gpus=gpus, **options)
    elif workers or threads or gpus:
        raise typer.BadParameter("they are of --on ray", param_hint="'--workers' / '--threads' / '--gpus'")
    else:
        result = pretrain(source, output, **options)
    if json_output:
        print_json(result.to_dict())
        return
    typer.echo(f"{result.epochs} epochs, {result.steps} steps in {result.seconds / 60:.1f} minutes of training")
    if result.top1 is not None and result.top5 is not None:
        typer.echo(f"validation: top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} %")
    typer.echo(f"weights: {result.output / 'model.safetensors'}")
