"""Weights are found by name, downloaded whole or not at all, and errors say what to do."""

from __future__ import annotations

import hashlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import WIDE, clip_state, random_images
from PIL import Image

import minidpt
from minidpt.checkpoints import pretrained
from minidpt.support.progress import use_progress

RESOLUTION = WIDE.patch * WIDE.grid
CONTENT = bytes(range(251)) * 401  # a file to download


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and package folder, so that no weights of this machine are found."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # remembers the proxies
    monkeypatch.delenv("MINIDPT_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "project/minidpt/checkpoints/pretrained.py"
    monkeypatch.setattr(pretrained, "__file__", str(file))
    return tmp_path


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ViT-B-32.pt"
    torch.save({name: value.half() for name, value in clip_state(WIDE).items()}, path)
    return path


class Handler(BaseHTTPRequestHandler):
    """Serves `content` at any address, with the server's faults."""

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        self.wfile.write(server.content[: server.cut])
        self.wfile.flush()
        server.stalled.wait(server.stall)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server on this machine that stands for OpenAI's: `server.url` and its faults."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests, server.stalled = CONTENT, [], threading.Event()
    server.cut, server.stall = None, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(pretrained, "BASE_URL", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stalled.set()
    server.shutdown()
    thread.join()
    server.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(file: Path, folder: Path, name: str = "ViT-B-32.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(file.read_bytes())
    return folder / name


# ---- load


def test_a_path_gives_its_model_named_after_the_file_and_its_preprocessing(clip_file, home):
    path = put(clip_file, home, "my.clip.pt")
    for spelling in (path, str(path)):
        clip, preprocess = minidpt.load(spelling)
        assert clip.name == "my.clip" and not clip.training
        images = random_images(WIDE, 2)
        expected = minidpt.build_clip({k: v.half() for k, v in clip_state(WIDE).items()})
        assert torch.equal(clip.encode_image(images), expected.encode_image(images))
        assert preprocess(Image.new("RGB", (40, 30))).shape == (3, RESOLUTION, RESOLUTION)


def test_a_known_name_is_found_and_options_must_not_contradict_it(clip_file, home, monkeypatch):
    put(clip_file, home / "mine")
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(home / "mine"))
    for options in ({}, {"quick_gelu": True, "head_width": 64}, {"image_size": 14}):
        assert minidpt.load("ViT-B/32", **options)[0].name == "ViT-B/32"
    for name, value, expected in (("quick_gelu", False, True), ("head_width", 32, 64)):
        message = f"ViT-B/32: expected {name} {expected}, got {value}: leave it out"
        with pytest.raises(ValueError, match=message):
            minidpt.load("ViT-B/32", **{name: value})


def test_the_model_is_moved_to_the_device(clip_file):
    clip, _ = minidpt.load(clip_file, device="meta")
    assert {value.device.type for value in clip.parameters()} == {"meta"}


def test_a_home_folder_is_understood_in_a_path(clip_file, home):
    put(clip_file, home / "home/models")
    assert minidpt.load("~/models/ViT-B-32.pt")[0].name == "ViT-B-32"


def test_folders_are_searched_in_their_order(home, monkeypatch):
    monkeypatch.setenv("MINIDPT_WEIGHTS", "~/named")
    folders = ["project/minidpt/weights", "project/weights", "home/named", "home/.cache/clip"]
    for folder in folders:
        (home / folder).mkdir(parents=True)
        (home / folder / "ViT-L-14-336px.pt").touch()
    for folder in folders:
        cached = pretrained.find_or_download("ViT-L/14@336px")
        assert cached == home / folder / "ViT-L-14-336px.pt"
        cached.unlink()


def test_a_wrong_folder_in_the_environment_is_said_and_not_passed_over(home, monkeypatch):
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(home / "nowhere"))
    with pytest.raises(FileNotFoundError, match="MINIDPT_WEIGHTS is '.*nowhere': expected an exis"):
        minidpt.load("ViT-B/32")


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["RN50", "ViT-B/33", "vit-b/32"], ValueError),
     (["none.pt", "folder/none.pt", "/none", "~/none", "./none"], FileNotFoundError)],
)  # fmt: skip
def test_an_unknown_name_or_path_lists_the_choices(names, kind):
    choices = "ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px, tiny or an existing path"
    for name in names:
        with pytest.raises(kind, match=f"^no CLIP '{name}': expected {choices}"):
            minidpt.load(name)


def test_an_activation_that_is_a_guess_is_a_warning(clip_file, home, caplog):
    def warnings(path: object, **options: bool) -> list[str]:
        caplog.clear()
        minidpt.load(path, **options)
        assert all(r.name == "minidpt" and r.levelname == "WARNING" for r in caplog.records)
        return [record.getMessage() for record in caplog.records]

    (guess,) = warnings(clip_file)
    assert f"{clip_file}: no file says its activation, so the quick GELU is used" in guess
    assert guess.endswith("with the exact GELU, pass quick_gelu=False (--no-quick-gelu)")
    assert warnings(clip_file, quick_gelu=False) == warnings(clip_file, quick_gelu=True) == []
    put(clip_file, home / "project/weights")
    assert warnings("ViT-B/32") == []
    archive = clip_state(WIDE) | {"input_resolution": torch.tensor(21)}  # as OpenAI's have
    torch.save(archive, home / "mine.pt")
    assert warnings(home / "mine.pt") == []


def test_a_folder_without_weights_says_what_was_expected_and_what_is_there(home):
    (home / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors, .* in it, got .*photo.jpg"):
        minidpt.load(home)


def test_the_missing_tiny_model_is_not_looked_for_in_the_network(server):
    with pytest.raises(FileNotFoundError, match="expected tiny.pt in .*project/weights"):
        minidpt.load("tiny")
    assert not server.requests


# ---- download


def test_a_known_name_is_downloaded_once_and_loaded(server, clip_file, home, monkeypatch):
    server.content = clip_file.read_bytes()
    monkeypatch.setitem(pretrained.SHA256, "ViT-B/32", sha256(server.content))
    for _ in range(2):
        assert minidpt.load("ViT-B/32")[0].name == "ViT-B/32"
    assert server.requests == [f"/{sha256(server.content)}/ViT-B-32.pt"]
    assert [file.name for file in (home / "home/.cache/clip").iterdir()] == ["ViT-B-32.pt"]


def test_a_cut_download_leaves_nothing_and_is_begun_anew(server, home, monkeypatch):
    monkeypatch.setitem(pretrained.SHA256, "ViT-B/16", sha256(CONTENT))
    server.cut = 60_000
    lost = "got 60,000 of 100,651 bytes"
    with pytest.raises(FileNotFoundError, match=f"{lost}.*: try again, or put {server.url}/"):
        minidpt.load("ViT-B/16")
    target = home / "home/.cache/clip/ViT-B-16.pt"
    assert not list(target.parent.iterdir())

    server.cut = None
    other = target.with_name("ViT-B-16.pt.part")
    other.write_bytes(b"of another program")
    assert pretrained.find_or_download("ViT-B/16") == target
    assert target.read_bytes() == CONTENT and set(target.parent.iterdir()) == {target, other}


def test_a_second_download_waits_for_the_first(server, home, monkeypatch):
    monkeypatch.setattr(pretrained, "TIMEOUT", 3600)
    server.cut, server.stall = 60_000, 3600  # the first hangs there
    target, failed = home / "a.pt", []

    def fetch() -> None:
        try:
            pretrained.download(f"{server.url}/a.pt", target, sha256(CONTENT))
        except OSError as error:
            failed.append(error)

    first, second = threading.Thread(target=fetch), threading.Thread(target=fetch)
    first.start()
    while not server.requests:
        time.sleep(0.01)
    second.start()
    second.join(timeout=0.2)
    assert second.is_alive() and len(server.requests) == 1
    server.cut = None
    server.stalled.set()  # the first one's connection ends
    first.join(), second.join()
    assert len(server.requests) == 2
    assert len(failed) == 1 and target.read_bytes() == CONTENT
    assert list(home.glob("a.pt*")) == [target]


def test_a_wrong_hash_is_refused_and_leaves_nothing(server, home):
    expected, server.content = sha256(CONTENT), CONTENT[:-1] + b"x"
    with pytest.raises(OSError, match=f"expected {expected}, got 100,651 of .*another SHA-256"):
        pretrained.download(server.url, home / "a.pt", expected)
    assert not list(home.glob("a.pt*"))


def test_offline_the_address_and_the_place_of_the_file_are_said(home, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens: refused at once
    sha256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"  # openai/CLIP's
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/ViT-L-14-336px.pt"
    cached = home / "home/.cache/clip/ViT-L-14-336px.pt"
    with pytest.raises(FileNotFoundError) as error:
        minidpt.load("ViT-L/14@336px")
    assert "refused" in str(error.value) and "\n" not in str(error.value)
    assert f"put {url} at {cached} or into the folder MINIDPT" in str(error.value)


def test_a_server_that_falls_silent_is_given_up(server, monkeypatch):
    monkeypatch.setattr(pretrained, "TIMEOUT", 0.1)
    server.cut, server.stall = 100, 3600
    with pytest.raises(FileNotFoundError, match="could not be downloaded .*timed out"):
        minidpt.load("ViT-B/32")


def test_a_download_is_one_warning_and_reports_its_progress(server, home, capsys, caplog):
    reports = []

    @contextmanager
    def watch(*job):
        reports.append(job)
        yield reports.append

    server.content = bytes(2_000_000)
    with use_progress(watch):
        for _ in range(2):  # the second time it is there
            pretrained.download(f"{server.url}/a.pt", home / "a.pt", sha256(server.content))
    job, *done = reports
    assert job == ("MB of a.pt", 2)
    assert done[-1] == 2 and done == sorted(done)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("minidpt", "WARNING")
    assert record.getMessage() == f"downloading {server.url}/a.pt (2 MB) to {home}, once"
    assert capsys.readouterr() == ("", "")
