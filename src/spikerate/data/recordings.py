"""Event data sets in their official layouts: finding their recordings, and reading them."""

from __future__ import annotations

import itertools
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from spikerate.data.class_folders import list_classes
from spikerate.data.events import DVS128, Broken, Events, Sensor, checked_member, decoder, parse, read_file
from spikerate.data.official import inner, need, text

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
_CALTECH101_NAMES = """
BACKGROUND_Google Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai
brain brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body
cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant
emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog
helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah
metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster saxophone
schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign strawberry sunflower tick
trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench yin_yang
"""
_CALTECH101 = tuple(_CALTECH101_NAMES.split())
_COLUMNS = "class,startTime_usec,endTime_usec"


@dataclass(frozen=True)
class Recording:
    """Where a recording is.

    Attributes:
        file: its own file, or the zip of its class, or the file of a longer recording.
        label: the index of its class.
        member: its name inside the zip.
        span: its part [start, end) of the longer recording, in microseconds.
    """

    file: Path
    label: int
    member: str | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Recordings:
    """A data set of recordings, none of which has been opened yet.

    Attributes:
        train, test: sorted; test is empty if the data set has no split of its own.
        classes: K names, by label.
        sensor: (H, W) in pixels.
        licence: of the data.
        validation: the validation set, if the data set has one.
        split, notes: as in `class_folders.Listing`.
    """

    name: str
    train: tuple[Recording, ...]
    test: tuple[Recording, ...]
    classes: tuple[str, ...]
    sensor: Sensor
    licence: str
    validation: tuple[Recording, ...] = ()
    split: str = ""
    notes: tuple[str, ...] = ()


def cifar10_dvs(path: Path) -> Recordings:
    """CIFAR10-DVS (Li et al., Frontiers in Neuroscience 2017): 10,000 recordings of 128 x 128 pixels, no split.

    Args:
        path: the folder of the ten class folders of `.aedat` or `.aedat4` files, or of the ten zips as distributed.

    Raises:
        ValueError: the folder is missing, a class is missing or exists twice, a name exists twice, a zip is broken or
            unsafe, or there are `.aedat4` files but not the package that reads them.
    """
    need(path)
    train = []
    for label, name in enumerate(_CIFAR10):
        zips = [e for e in _entries(path) if e.name.lower() == f"{name}.zip" and e.is_file()]
        places = [*(folder for folder in [path / name] if folder.is_dir()), *zips]
        if len(places) != 1:
            found = " and ".join(e.name for e in places) or f"neither a folder {name} nor {name}.zip"
            raise ValueError(f"{path} has {found}: one of the two is needed for the class {name}")
        (place,) = places
        train += _files(place, label, (".aedat", ".aedat4")) if place.is_dir() else _members(place, label, (".aedat",))
    if any(r.file.suffix.lower() == ".aedat4" for r in train):
        decoder()
    return Recordings("cifar10-dvs", tuple(train), (), _CIFAR10, DVS128, "CC BY 4.0, Li et al. 2017")


def n_mnist(path: Path) -> Recordings:
    """N-MNIST (Orchard et al., Frontiers in Neuroscience 2015): 60,000 and 10,000 recordings of 34 x 34 pixels.

    Args:
        path: the folder that contains `Train` and `Test`, or its parent folder, if it is named `N-MNIST`.

    Raises:
        ValueError: the folder or a class is missing, or a name exists twice.
    """
    folder = inner(path, "N-MNIST")
    classes = tuple("0123456789")
    train, test = (_split(folder / part, classes, ".bin") for part in ("Train", "Test"))
    return Recordings("n-mnist", train, test, classes, (34, 34), "CC BY-SA 4.0, Orchard et al. 2015")


def n_caltech101(path: Path) -> Recordings:
    """N-Caltech101 (Orchard et al., Frontiers in Neuroscience 2015): 8,709 recordings of up to 240 x 180 pixels, no split.

    The 101 classes are all of the distribution, as is usual: 100 of objects, and `BACKGROUND_Google`, pictures of none. (It
    has no class `Faces`, whose pictures are those of `Faces_easy`.) A tenth of each class is the test set, as in BrainCog,
    but not the same recordings, since there is no official split: of the n sorted files of a class, those at the first
    max(1, round(n / 10)) places of NumPy's default_rng((0, label)).permutation(n). So a file that is missing from one class
    moves none of another.

    Args:
        path: the folder `Caltech101` of the class folders, or its parent folder.

    Raises:
        ValueError: the folder or a class is missing, a name exists twice, or a class has one recording only.
    """
    marked = list(_tenths(_split(inner(path, "Caltech101"), _CALTECH101, ".bin")))
    train, test = (tuple(r for r, drawn in marked if drawn is part) for part in (False, True))
    return Recordings(
        "n-caltech101",
        train,
        test,
        _CALTECH101,
        (180, 240),
        "CC BY 4.0, Orchard et al. 2015",
        split="test samples are a tenth of each class, drawn by NumPy default_rng((0, label)).permutation of its files",
    )


def dvs128_gesture(path: Path) -> Recordings:
    """DVS128 Gesture (Amir et al., CVPR 2017): 11 gestures cut out of the recordings of 29 persons, 128 x 128 pixels.

    Args:
        path: the folder `DvsGesture`, or its parent folder.

    Raises:
        ValueError: the folder, a list, a file or a class is missing, a trial is listed twice, or a table is broken.
    """
    folder = inner(path, "DvsGesture")
    trials = {part: _trials(folder / f"trials_to_{part}.txt") for part in ("train", "test")}
    twice = set(trials["train"]) & set(trials["test"])
    if twice:
        raise ValueError(f"{folder} lists {min(twice)} for training and for the test: unpack DvsGesture.tar.gz again")
    train, test = (tuple(r for name in sorted(names) for r in _gestures(folder / name)) for names in trials.values())
    for part, recordings in (("training", train), ("test", test)):
        missing = set(range(len(_GESTURES))) - {r.label for r in recordings}
        if missing:
            raise ValueError(f"{folder} has no {part} recording of the class {_GESTURES[min(missing)]}: it is incomplete")
    return Recordings("dvs128-gesture", train, test, _GESTURES, DVS128, "CC BY 4.0, Amir et al. 2017")


def event_folder(path: Path, sensor: Sensor) -> Recordings:
    """Recordings of your own, `PART/CLASS/*.npz` with the parts `train`, `val` and `test`, or `CLASS/*.npz`.

    Args:
        path: the folder of the data set.
        sensor: (H, W) of all recordings.

    Raises:
        ValueError: a folder is missing or can't be read, there are fewer than two classes, or a name exists twice.
    """
    need(path)
    found = list_classes(path, {".npz"}, "recordings")
    train, validation, test = (
        tuple(Recording(file, label) for file, label in part) for part in (found.train, found.validation, found.test)
    )
    return Recordings("events", train, test, found.classes, sensor, "not stated", validation, found.split, found.notes)


def read(recordings: Sequence[Recording], sensor: Sensor) -> list[Events | str]:
    """Read recordings. Consecutive recordings of one file are read by opening it once.

    Returns:
        for each recording its events, or a sentence that says why it is broken.
    """
    found: list[Events | str] = []
    for file, group in itertools.groupby(recordings, lambda r: r.file):
        same = list(group)
        found += _from_file(file, same, sensor) if same[0].member is None else _from_zip(file, same, sensor)
    return found


def _from_file(file: Path, recordings: list[Recording], sensor: Sensor) -> list[Events | str]:
    try:
        whole = read_file(file, sensor)
    except Broken as error:
        return [str(error)] * len(recordings)
    return [_cut(whole, r) for r in recordings]


def _cut(whole: Events, recording: Recording) -> Events | str:
    if recording.span is None:
        return whole
    start, end = recording.span
    a, b = np.searchsorted(whole.t, recording.span).tolist()
    return whole[a:b] if a < b else f"{recording.file} has no events from {start} to {end} us: leave this part out"


def _from_zip(file: Path, recordings: list[Recording], sensor: Sensor) -> list[Events | str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [_from_member(archive, r, sensor) for r in recordings]
    except Exception as error:  # a broken zip can raise anything
        return [f"{file} is truncated or no zip ({type(error).__name__}): fetch it again"] * len(recordings)


def _from_member(archive: zipfile.ZipFile, recording: Recording, sensor: Sensor) -> Events | str:
    name, where = str(recording.member), f"{recording.file}/{recording.member}"
    try:
        size = recording.file.stat().st_size
        return parse(archive.read(checked_member(archive.getinfo(name), size, where)), where, sensor)
    except Broken as error:
        return str(error)
    except Exception as error:  # a broken zip can raise anything
        return f"{where} can't be unpacked ({type(error).__name__}): fetch the zip again"


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, sorted."""
    try:
        return sorted(e for e in folder.iterdir() if not e.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder} can't be read: {error.strerror}") from error


def _split(folder: Path, classes: Sequence[str], suffix: str) -> tuple[Recording, ...]:
    missing = [name for name in classes if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} has no folder of the class {missing[0]}: it is incomplete")
    return tuple(r for label, name in enumerate(classes) for r in _files(folder / name, label, (suffix,)))


def _tenths(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, bool]]:
    """The recordings, which are sorted by class, and whether each is among the tenth of its class that is drawn."""
    for label, group in itertools.groupby(recordings, lambda r: r.label):
        same = list(group)
        n = len(same)
        if n == 1:
            raise ValueError(
                f"{same[0].file.parent} has one recording, and to train and to test takes two: it is incomplete"
            )
        drawn = set(np.random.default_rng((0, label)).permutation(n)[: max(1, round(n / 10))].tolist())
        yield from ((r, k in drawn) for k, r in enumerate(same))


def _files(folder: Path, label: int, suffixes: tuple[str, ...]) -> list[Recording]:
    """The recordings of a class in its folder; files with other suffixes are ignored."""
    files = [e for e in _entries(folder) if e.suffix.lower() in suffixes and not e.is_dir()]
    _check_names(folder, files, suffixes)
    return [Recording(file, label) for file in files]


def _members(file: Path, label: int, suffixes: tuple[str, ...]) -> list[Recording]:
    """The recordings of a class in its zip, which is not unpacked to disk."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info.filename for info in archive.infolist()]
    except Exception as error:  # a broken zip can raise anything
        raise ValueError(f"{file} is truncated or no zip ({type(error).__name__}): fetch it again") from error
    for name in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{file} has the member {name!r}, which leaves its folder: don't trust it")
    paths = [p for p in map(PurePosixPath, sorted(members)) if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    _check_names(file, paths, suffixes)
    return [Recording(file, label, str(path)) for path in paths]


def _check_names(where: Path, files: Sequence[PurePath], suffixes: tuple[str, ...]) -> None:
    if not files:
        raise ValueError(f"{where} has no recordings, no file that ends in {' or '.join(suffixes)}: the class is incomplete")
    stems = Counter(file.stem for file in files)
    name, n = stems.most_common(1)[0]
    if n > 1:
        raise ValueError(f"{where} has {n} recordings of the name {name}: remove all but one")


def _trials(file: Path) -> list[str]:
    """The file names in a list of trials, one per line."""
    names = [line.strip() for line in text(file).splitlines() if line.strip()]
    for name in names:
        if Path(name).name != name or not name.endswith(".aedat"):
            raise ValueError(f"{file} lists {name!r}, which is no name of an .aedat file: unpack DvsGesture.tar.gz again")
        if not (file.parent / name).is_file():
            raise ValueError(f"{file} lists {name}, which does not exist: unpack DvsGesture.tar.gz again")
        if names.count(name) > 1:
            raise ValueError(f"{file} lists {name} {names.count(name)} times: remove all but one")
    return names


def _gestures(file: Path) -> list[Recording]:
    """The labelled parts of a trial, from its table. They may overlap, as some official ones do."""
    table = file.with_name(f"{file.stem}_labels.csv")
    lines = [line.strip() for line in text(table).splitlines()]
    if not lines or lines[0].replace(" ", "") != _COLUMNS:
        raise ValueError(f"{table} has no first line {_COLUMNS}: unpack DvsGesture.tar.gz again")
    found = []
    for k, line in enumerate(lines[1:], 2):
        if not line:
            continue
        row = line.split(",")
        if len(row) != 3 or not all(v.strip().isascii() and v.strip().isdigit() and len(v) < 16 for v in row):
            raise ValueError(f"{table} has {line[:40]!r} in line {k}: three numbers are needed, {_COLUMNS}")
        label, start, end = map(int, row)
        if not 1 <= label <= len(_GESTURES) or start >= end:
            raise ValueError(f"{table} has {line!r} in line {k}: classes are 1 to {len(_GESTURES)}, and start is before end")
        found.append(Recording(file, label - 1, span=(start, end)))
    return found
