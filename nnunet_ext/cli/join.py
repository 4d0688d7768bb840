"""``nnunet-ext join``: one raw data set of several, each a domain."""

from typing import Annotated

from typer import Argument, Option

from nnunet_ext._common.console import say
from nnunet_ext.cli.domains import show_domains
from nnunet_ext.domains import joining
from nnunet_ext.nnunet.datasets import DATASET_JSON

Datasets = Annotated[
    list[str], Argument(metavar="DATASET", help="Numbers or names of raw data sets.")
]
Unlabeled = Annotated[
    list[str] | None,
    Option(metavar="D", help="Data set to take images without labels from; may be repeated."),
]


def command(
    datasets: Datasets,
    number: Annotated[int, Option("--id", min=1, max=999, help="Number of the new data set.")],
    name: Annotated[str, Option(help="Its name, without Dataset012_.")],
    unlabeled: Unlabeled = None,
    link: Annotated[bool, Option("--link", help="Link the files instead of copying them.")] = False,
) -> None:
    """Make one raw data set of several; each becomes a domain.

    Labels, channels and file endings must agree. A data set that has domains of its own keeps
    them, with its name in front. Cases keep their names unless two data sets share one. Images
    without labels go to imagesUn, where nnU-Net's commands never look. Test images are left out.

    \b
    Examples:
      nnunet-ext join 11 12 13 --id 20 --name ThreeSites
      nnunet-ext join 11 12 --id 21 --name Adapted --unlabeled 14 --link
    """
    joined = joining.gather(datasets, unlabeled or [], number, name)
    joining.write(joined, link)
    say(f"{joined.folder.name}: {len(joined.cases)} training cases", "bold")
    show_domains(joined.content["domains"])
    if joined.unlabelled:
        say(f"Without labels, in imagesUn: {len(joined.unlabelled)}")
    every = joined.cases | joined.unlabelled
    renamed = [f"{case.name} is now {new}" for new, case in every.items() if new != case.name]
    if renamed:
        several = f" and {len(renamed) - 1} more" if len(renamed) > 1 else ""
        say(f"Renamed, because several data sets have them: {renamed[0]}{several}")
    say(f"Wrote {joined.folder}")
    if joined.unlabelled and "CT" in joined.content[joining.CHANNELS].values():
        say(
            "Unless the images without labels are CT as well, replace CT by another name in "
            f"{joining.CHANNELS} of {joined.folder / DATASET_JSON} before you plan: "
            "nnU-Net would clip and scale them by the intensities of the labelled CT images.",
            "yellow",
        )
    say(f"Next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity")
