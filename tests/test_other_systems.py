"""What Windows and other systems lack: nothing is imported, or called, that is not there."""

from __future__ import annotations

import subprocess
import sys

from cli_runner import environment

WITHOUT = """
import os, signal, sys, _signal
import torch, torchvision, PIL.Image, PIL.ImageDraw, cyclopts, rich.console, jinja2, multiprocessing, tempfile, shutil
tempfile.gettempdir()

for name in ("fork", "forkpty", "register_at_fork", "mkfifo", "set_blocking", "get_blocking", "getuid", "geteuid",
             "O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_PATH", "O_NOCTTY", "O_SYNC", "killpg",
             "sched_getaffinity", "statvfs", "uname", "pread", "fchmod", "posix_fadvise", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGQUIT", "SIGPIPE", "SIGCHLD", "setitimer",
             "getitimer", "alarm", "pause", "pthread_kill", "pthread_sigmask", "sigwait", "sigpending", "siginterrupt",
             "SIG_BLOCK", "SIG_SETMASK", "SIG_UNBLOCK", "ITIMER_REAL"):
    for module in (signal, _signal):
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty"):
    sys.modules[name] = None
os.supports_dir_fd = set()
real_open = os.open
def no_folders(path, flags, mode=0o777, *, dir_fd=None):
    assert dir_fd is None
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return real_open(path, flags, mode)
os.open = no_folders
"""
USES = """
import pkgutil, importlib
import torchpeek as tp
for module in pkgutil.walk_packages(tp.__path__, "torchpeek."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
heatmap = tp.explain(net, torch.rand(1, 3, 8, 8), layer="1")
tp.save(heatmap, "heatmap.safetensors")
assert torch.equal(tp.load("heatmap.safetensors").values, heatmap.values)
stream = tp.TensorStream("stream")
with tp.record(net, "0", keep=tp.keep.Callback(stream)):
    net(torch.rand(1, 3, 8, 8))
assert len(list(stream.read("0"))) == 1
PIL.Image.new("RGB", (64, 64)).save("cat.png")
sys.argv = ["torchpeek", "cam", "cat.png", "--model", "torchvision:squeezenet1_1", "--weights", "random", "-o", "out"]
import runpy
runpy.run_module("torchpeek", run_name="__main__")
"""


def test_everything_works_without_what_windows_lacks(tmp_path) -> None:
    code = WITHOUT + USES
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=300
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "results.json").exists()
