"""Nothing in the package unpickles, runs text as code, starts a program, or writes beside the modules that may."""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

import pytest

import polargrad

SOURCE = Path(polargrad.__file__).parent

# Names by which objects are unpickled, text becomes code, or a program is started, however they were imported.
RUNS_CODE = (
    *("pickle.*", "_pickle.*", "marshal.*", "shelve.*", "dill.*", "cloudpickle.*", "joblib.*", "jsonpickle.*"),
    *("yaml.*", "pandas.*", "numpy.load", "torch.load", "torch.jit.load", "torch.hub.*", "torch.package.*"),
    *("torch.export.load", "torch.serialization.*", "torch.ops.load_library", "torch.classes.load_library"),
    *("torch.utils.cpp_extension.*", "torch.distributed.checkpoint.*", "torch.distributed.*object*"),
    *("eval", "exec", "compile", "__import__", "__builtins__", "builtins.*", "runpy.*"),
    *("subprocess.*", "os.system", "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "os.startfile", "pty.*"),
    *("asyncio.create_subprocess_*", "ctypes.CDLL", "ctypes.cdll", "ctypes.PyDLL", "importlib.util.spec*"),
    *("importlib.util.module*", "importlib.machinery.*", "importlib.import_module"),
)
RUNS_CODE_AS_METHOD = {"recv", "read_pickle", "extractall", "exec_module", "load_module"}
NOT_FALSE = {"shell", "allow_pickle", "trust_remote_code"}
MODULES = {pattern.partition(".")[0] for pattern in RUNS_CODE if "." in pattern} - {"torch", "numpy"}

WRITES = (
    *("os.rename", "os.replace", "os.remove", "os.unlink", "os.mkdir", "os.makedirs", "os.rmdir", "os.removedirs"),
    *("os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.open", "os.mkfifo", "os.utime"),
    *("shutil.rmtree", "shutil.copy*", "shutil.move", "shutil.*archive", "tempfile.*", "numpy.save*", "torch.save"),
    *("zipfile.*", "tarfile.*", "sqlite3.*"),
)
WRITES_AS_METHOD = {
    *("write_text", "write_bytes", "mkdir", "rmdir", "unlink", "rename", "touch", "symlink_to", "hardlink_to", "chmod"),
    *("tofile", "savefig", "save_pretrained", "to_csv", "to_parquet", "save_to_disk"),
}

# Where it is done all the same: what, and of what. Names out of files never reach the first imports.
ALLOWED = {
    "later.py": {"importlib.import_module"},  # names in tables of ours
    "linalg/registry.py": {"importlib.import_module"},
    "optim/execution.py": {"importlib.import_module"},
    "lab/cli/main.py": {"importlib.import_module", "os.open", "open to write"},  # os.devnull, for a closed stdout
    "lab/cli/completion.py": {"importlib.import_module"},
    "lab/studies/__init__.py": {"importlib.import_module"},
    "lab/studies/engine.py": {"importlib.import_module"},
    "lab/run/tracking.py": {"importlib.import_module"},
    "outside.py": {"importlib.*", "exec_module"},  # the code that a user names
    "lab/run/environment.py": {"subprocess.run", "subprocess.TimeoutExpired"},  # git, for the commit
    # Objects between processes of one job, which trust each other.
    "lab/run/workers.py": {"recv", "pickle.PicklingError"},
    "distributed/communicator.py": {"torch.distributed.all_gather_object"},
    "distributed/checkpoint.py": {
        *("torch.distributed.*object*", "torch.distributed.checkpoint*"),  # with a reader and a writer of our own
        *("mkdir", "rename", "os.open", "shutil.rmtree", "open to write"),
    },
    "lab/files.py": {"tempfile.*", "chmod", "unlink", "replace", "write_bytes", "os.open"},
    "lab/run/folder.py": {
        *("tempfile.mkdtemp", "chmod", "mkdir", "os.rmdir", "rename", "unlink", "open to write", "shutil.rmtree"),
    },
    "lab/train/checkpoint.py": {"rename", "rmdir"},
    "lab/train/optimizers.py": {"torch.save"},  # into memory
    "lab/lm/cache.py": {"mkdir", "write_text"},
    "lab/lm/sources.py": {"write_text"},  # to the name that `publish` gives
    "lab/lm/tokens.py": {"open to write", "tofile"},  # to the name that `publish` gives
    "lab/lm/generation.py": {"mkdir", "rename", "os.chmod", "tempfile.TemporaryDirectory", "save_pretrained"},
    "lab/report/figures.py": {"mkdir", "savefig"},
    "lab/studies/engine_report.py": {"mkdir"},
    "lab/studies/study.py": {"open to write"},
    "lab/cli/report.py": {"mkdir"},
    "lab/cli/terminal.py": {"rmdir"},
    "integrations/torchtitan.py": {"torch.distributed.checkpoint.state_dict.*"},  # which reads no files
}


def violations(text, place=""):
    """What a file does that it may not, as names with lines."""
    tree = ast.parse(text)
    known: dict[str, str] = {}

    def dotted(node):
        """The full name of what an expression is, as far as imports and assignments tell; None if they do not."""
        if isinstance(node, ast.Name):
            return known.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            before = dotted(node.value)
            return None if before is None else f"{before}.{node.attr}"
        if isinstance(node, ast.Call) and node.args and isinstance(first := node.args[-1], ast.Constant):
            function = dotted(node.func)
            if function in ("importlib.import_module", "__import__"):
                return str(first.value)
            if function == "getattr" and len(node.args) == 2 and (owner := dotted(node.args[0])):
                return f"{owner}.{first.value}"
        return None

    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                imported.append((node.lineno, f"{node.module}.{alias.name}"))
    for _ in range(3):  # names for names
        for node in ast.walk(tree):
            pairs = []
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                pairs = [(node.targets[0].id, node.value)]
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name) and node.value:
                pairs = [(node.target.id, node.value)]
            for name, value in pairs:
                if (full := dotted(value)) and "." in full and full.partition(".")[0] in {*MODULES, "torch", "numpy"}:
                    known[name] = full
    found = [(line, name) for line, name in imported if matches(name, (*RUNS_CODE, *WRITES))]
    guarded = set()  # references that are fine by the arguments of their call
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += _calls(node, dotted, guarded)
        elif isinstance(node, ast.Subscript) and isinstance(of := node.value, ast.Call):
            whole = not of.args or dotted(of.args[0]) in MODULES
            found += [(node.lineno, "vars()[]")] if whole and dotted(of.func) in ("globals", "vars", "locals") else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.Call) and id(node) not in guarded:
            full = dotted(node)
            if full is not None and matches(full, (*RUNS_CODE, *WRITES)):
                found.append((node.lineno, full))
            elif isinstance(node, ast.Attribute) and node.attr in RUNS_CODE_AS_METHOD | WRITES_AS_METHOD:
                found.append((node.lineno, node.attr))
    return sorted({(line, name) for line, name in found if not matches(name, ALLOWED.get(place, ()))})


def _calls(node, dotted, guarded):
    """What is wrong with a call by its arguments."""
    full, found = dotted(node.func), []
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if full == "torch.load" and getattr(keywords.get("weights_only"), "value", None) is True:
        guarded.add(id(node.func))
    for name in NOT_FALSE & set(keywords):
        if getattr(keywords[name], "value", None) is not False:
            found.append((node.lineno, f"{name}="))
    unknown = full == "getattr" and len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)
    if unknown and dotted(node.args[0]) in MODULES:
        found.append((node.lineno, "getattr of a module"))
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("open", "fdopen", "memmap", "TextIOWrapper"):
        given = [value for value in (*node.args, *keywords.values()) if isinstance(value, ast.Constant)]
        modes = [value.value for value in given if isinstance(value.value, str)]
        if any(re.fullmatch(r"[rwaxbt+]+", mode) and set(mode) & set("wax+") for mode in modes):
            found.append((node.lineno, "open to write"))
    if name == "replace" and len(node.args) == 1 and not node.keywords and full != "dataclasses.replace":
        found.append((node.lineno, "replace"))
    return found


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def test_code_is_run_and_files_are_written_where_that_is_allowed_alone():
    found = {}
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        if wrong := violations(path.read_text(), place):
            found[place] = wrong
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(data)",
        "from pickle import loads\nloads(data)",
        "from pickle import loads as read\nread(data)",
        "import pickle as p\np.Unpickler(file).load()",
        "import _pickle\n_pickle.loads(data)",
        "import pickle\nread = pickle.loads\nread(data)",
        "import pickle\nread = getattr(pickle, 'loads')\nread(data)",
        "import pickle\ngetattr(pickle, 'lo' + 'ads')(data)",
        "globals()['ev' + 'al'](text)",
        "import os\nvars(os)['sys' + 'tem']('ls')",
        "import importlib\nimportlib.import_module('pickle').loads(data)",
        "__import__('pickle').loads(data)",
        "from pickle import *",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "import torch\nread = torch.load\nread(path)",
        "from torch.distributed import checkpoint as dcp\ndcp.load(state)",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from numpy import load\nload(path)",
        "import marshal, shelve\nshelve.open(path)",
        "from joblib import load\nload(path)",
        "import yaml\nyaml.load(text)",
        "eval(text)",
        "run = eval\nrun(text)",
        "exec(text)",
        "exec(compile(text, 'x', 'exec'))",
        "import builtins\nbuiltins.exec(text)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import Popen as start\nstart(['ls'])",
        "import subprocess as s\ns.check_output(['ls'])",
        "import os\nos.system('ls')",
        "from os import system\nsystem('ls')",
        "import os as o\no.execvp('ls', [])",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
        "connection.recv()",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "path.write_text('x')",
        "path.open('w')",
        "open(path, 'ab')",
        "open(path, mode='r+')",
        "from shutil import rmtree\nrmtree(path)",
        "import os\nos.replace(a, b)",
        "part.replace(path)",
        "path.mkdir()",
        "import tempfile\ntempfile.mkstemp()",
        "from tempfile import mkstemp as new\nnew()",
        "import torch\ntorch.save(x, path)",
        "figure.savefig(path)",
    ],
)
def test_the_rule_sees_every_way(text):
    assert violations(text)


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)",
        "path.open()",
        "path.open('rb')",
        "text.replace('a', 'b')",
        "import dataclasses\ndataclasses.replace(spec)",
        "del vars(module)[name]",
        "module.compile()",
        "module.eval()",
        "import re\nre.compile('a')",
        "sys.stdout.write('x')",
    ],
)
def test_the_rule_leaves_the_rest_alone(text):
    assert not violations(text)
