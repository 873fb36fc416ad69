"""What runs in a forked process ends as a process of its own would (`fork_server.py`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from helpers.run_command import fork_command


def test_a_forked_command_ends_with_the_process_that_asked_for_it(tmp_path: Path):
    script = tmp_path / "waits.py"
    script.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(fork_command(script), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.kill()
        assert process.communicate(timeout=20) == ("", None)  # nobody has its output open any more
    assert process.returncode == -9
