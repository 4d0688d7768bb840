"""``nnunet-ext join``: one raw data set of several, each a domain."""

from typing import Annotated

import typer


def join(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET", help="Numbers or names of raw data sets."),
    ],
    number: Annotated[int, typer.Option("--id", min=1, max=999, help="Number of the new one.")],
    name: Annotated[str, typer.Option(help="Its name, what stands behind Dataset012_.")],
    unlabeled: Annotated[
        list[str] | None,
        typer.Option(
            metavar="D", help="Data set whose images serve without labels; may be repeated."
        ),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Make links to images and labels, no copies.")
    ] = False,
) -> None:
    """Make one raw data set of several; each becomes a domain.

    Labels, channels and file endings must agree. A data set that has domains of its own keeps
    them, with its name in front. Cases keep their names unless two data sets share one. Images
    without labels go to imagesUn, where nnU-Net's commands never look. Test images stay behind.

    \b
    Examples:
      nnunet-ext join 11 12 13 --id 20 --name ThreeSites
      nnunet-ext join 11 12 --id 21 --name Adapted --unlabeled 14 --link
    """
    from rich.console import Console

    from nnunet_ext._common.console import print_plain
    from nnunet_ext.cli.domains import print_domains
    from nnunet_ext.domains import joining

    console = Console(highlight=False)
    joined = joining.gather(datasets, unlabeled or [], number, name)
    joining.write(joined, link)
    print_plain(console, f"{joined.folder.name}: {len(joined.cases)} training cases", "bold")
    print_domains(console, joined.content["domains"])
    if joined.unlabelled:
        print_plain(console, f"Without labels, in imagesUn: {len(joined.unlabelled)}")
    every = joined.cases | joined.unlabelled
    renamed = [f"{case.name} is now {new}" for new, case in every.items() if new != case.name]
    if renamed:
        several = f" and {len(renamed) - 1} more" if len(renamed) > 1 else ""
        print_plain(console, f"Renamed, because several data sets have them: {renamed[0]}{several}")
    print_plain(console, f"Wrote {joined.folder}")
    if joined.unlabelled and "CT" in joined.content[joining.CHANNELS].values():
        print_plain(
            console,
            "Unless the images without labels are CT as well, replace CT by another name in "
            "channel_names of its dataset.json before you plan: nnU-Net would clip and scale them "
            "by the intensities of labelled CT.",
            "yellow",
        )
    print_plain(
        console,
        f"Next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity",
    )
