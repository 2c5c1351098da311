"""A rehearsal of `ray up`, scaling and `ray down` on the AWS cluster file, against a local moto server.

Ray's command line, its AWS provider, its autoscaler's scheduler and its installer run as they are. What is not real is AWS (moto keeps
its books) and the far side of SSH: `ssh` and `rsync` are programs that write down what they were asked, the second one keeping the files,
so that nothing reaches for an address that belongs to someone else.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState  # type: ignore[attr-defined]  # protobuf makes these at import
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind  # type: ignore[attr-defined]

ROOT = Path(__file__).parent.parent
CLUSTER_FILE = ROOT / "clusters" / "aws.yaml"
ACCESS_FILE = ROOT / "clusters" / "aws_access.yaml"
BUCKET = "the-store"
SSH_FROM = "203.0.113.7/32"
TOKEN = "rehearsal-token-0123456789abcdef"
COMMAND_TIMEOUT_S = 120
NUM_WORKERS = 2

STAND_IN = """\
import json, os, shutil, sys
program, *arguments = sys.argv[1:]
with open(os.environ["REHEARSAL_LOG"], "a") as log:
    log.write(json.dumps([program, *arguments]) + "\\n")
if program == "rsync":
    source, (machine, _, path) = arguments[-2], arguments[-1].rpartition("@")[2].partition(":")
    kept = os.path.join(os.environ["REHEARSAL_MACHINES"], machine, path.removeprefix("~/"))
    if source.endswith("/"):
        shutil.copytree(source, kept, dirs_exist_ok=True)
    else:
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        shutil.copy(source, kept)
"""


def cluster_config() -> dict[str, Any]:
    """The cluster file as written."""
    config: dict[str, Any] = yaml.safe_load(CLUSTER_FILE.read_text())
    return config


@dataclass(frozen=True)
class Machine:
    """An EC2 instance and its disk as moto has them."""

    facts: dict[str, Any]
    volume: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.facts["InstanceId"])

    @property
    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.facts["Tags"]}

    @property
    def profile(self) -> str:
        return str(self.facts["IamInstanceProfile"]["Arn"]).rpartition("/")[2]


@dataclass(frozen=True)
class Calls:
    """What `ssh` and `rsync` were asked for a machine, in order."""

    recorded: list[list[str]]
    files: Path

    @property
    def commands(self) -> list[str]:
        return [call[-1] for call in self.recorded if call[0] == "ssh"]

    def position(self, text: str) -> int:
        """Index of the first command with `text` in it."""
        found = [index for index, command in enumerate(self.commands) if text in command]
        assert found, f"no command has {text!r}"
        return found[0]


@dataclass(frozen=True)
class Rehearsal:
    """What was seen at each step."""

    endpoint: str
    region: str
    output: str
    head: Machine
    head_calls: Calls
    num_to_launch: dict[str, int]
    num_to_end: dict[int, int]
    workers: list[Machine]
    worker_calls: Calls
    provider_calls: set[str]
    left_after_idle: list[Machine]
    left_after_down: list[Machine]


@dataclass(frozen=True)
class Stage:
    """Where a rehearsal takes place."""

    endpoint: str
    region: str
    home: Path
    machines: Path
    log: Path
    environment: pytest.MonkeyPatch

    def calls(self, start: int, address: str) -> Calls:
        return Calls([json.loads(line) for line in self.log.read_text().splitlines()[start:]], self.machines / address)


@contextmanager
def staged(scratch: Path) -> Iterator[Stage]:
    """A moto server, a home directory with a token, and `ssh` and `rsync` that only record."""
    programs, home, machines = scratch / "bin", scratch / "home", scratch / "machines"
    for directory in (programs, home / ".ray", machines):
        directory.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    stand_in = scratch / "stand_in.py"
    stand_in.write_text(STAND_IN)
    for name in ("ssh", "rsync"):
        called = shlex.join([sys.executable, "-IS", str(stand_in), name])
        (programs / name).write_text(f'#!/bin/sh\nexec {called} "$@"\n')
        (programs / name).chmod(0o755)
    region = cluster_config()["provider"]["region"]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as environment:
        for name in [n for n in os.environ if n.startswith(("AWS_", "RAY_"))]:
            environment.delenv(name)
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "REHEARSAL_LOG": str(scratch / "log"),
            "REHEARSAL_MACHINES": str(machines),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(scratch),  # Ray caches resolved cluster files there
        }.items():
            environment.setenv(name, value)
        environment.setattr(boto3, "DEFAULT_SESSION", None)
        try:
            yield Stage(endpoint, region, home, machines, scratch / "log", environment)
        finally:
            server.stop()


def rehearse(stage: Stage) -> Rehearsal:
    """The access stack, `ray up`, two workers, their idle end, `ray down`."""
    give_access(stage.region)
    output = run_ray("up", str(CLUSTER_FILE), "--yes", "--no-config-cache")
    (head,) = existing_machines(stage.region)
    head_calls = stage.calls(0, head.facts["PublicIpAddress"])

    # From here on the head's view: its home directory, and the cluster file that `ray up` sent there.
    stage.environment.setenv("HOME", str(head_calls.files))
    reader = FileConfigReader(str(head_calls.files / "ray_bootstrap_config.yaml"), skip_content_hash=True)
    config = reader.get_cached_autoscaling_config()
    num_to_launch = {r.instance_type: r.count for r in scheduled(config, num_gpu_tasks=20, num_idle=0, idle_minutes=0).to_launch}
    num_to_end = {m: len(scheduled(config, num_gpu_tasks=0, num_idle=2, idle_minutes=m).to_terminate) for m in (5, 60)}

    provider = _get_node_provider(config.get_provider_config(), config.get_config("cluster_name"), use_cache=False)
    provider_calls: set[str] = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register("before-call.ec2", lambda model, **_: provider_calls.add(model.name))
    adapter = NodeProviderAdapter(provider, reader)
    for _ in range(NUM_WORKERS):  # one by one: Ray asks for "1 to N" at once, of which moto starts 1
        adapter._launch_nodes_by_type("gpu_worker", 1, "rehearsal")
    assert adapter.poll_errors() == []
    assert len(adapter.get_non_terminated()) == 1 + NUM_WORKERS
    workers = [machine for machine in existing_machines(stage.region) if machine.id != head.id]
    num_calls = len(stage.log.read_text().splitlines())
    first = Instance(instance_id="1", cloud_instance_id=workers[0].id, instance_type="gpu_worker")
    RayInstaller(provider, config).install_ray(first, head.facts["PrivateIpAddress"])
    worker_calls = stage.calls(num_calls, workers[0].facts["PrivateIpAddress"])
    adapter._do_terminate([worker.id for worker in workers], "rehearsal")
    assert adapter.poll_errors() == []
    left_after_idle = existing_machines(stage.region)

    stage.environment.setenv("HOME", str(stage.home))
    run_ray("down", str(CLUSTER_FILE), "--yes")
    return Rehearsal(
        endpoint=stage.endpoint,
        region=stage.region,
        output=output,
        head=head,
        head_calls=head_calls,
        num_to_launch=num_to_launch,
        num_to_end=num_to_end,
        workers=workers,
        worker_calls=worker_calls,
        provider_calls=provider_calls,
        left_after_idle=left_after_idle,
        left_after_down=existing_machines(stage.region),
    )


def give_access(region: str) -> None:
    """Deploy the access file, as its README says."""
    boto3.client("s3", region).create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": region})
    boto3.client("cloudformation", region).create_stack(
        StackName="explainability-sweep",
        TemplateBody=ACCESS_FILE.read_text(),
        Parameters=[
            {"ParameterKey": "Bucket", "ParameterValue": BUCKET},
            {"ParameterKey": "SshFrom", "ParameterValue": SSH_FROM},
        ],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def run_ray(*arguments: str) -> str:
    """The output of Ray's command line, run in the checkout. Ended, by its process group, if it does not end in time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return output


def existing_machines(region: str) -> list[Machine]:
    """The instances that are not terminated, stopped ones among them."""
    ec2 = boto3.client("ec2", region)
    states = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    reservations = ec2.describe_instances(Filters=states)["Reservations"]
    instances = [instance for reservation in reservations for instance in reservation["Instances"]]
    volumes = {volume["VolumeId"]: volume for volume in ec2.describe_volumes()["Volumes"]}
    return [Machine(i, volumes[i["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]]) for i in instances]


def scheduled(config: AutoscalingConfig, *, num_gpu_tasks: int, num_idle: int, idle_minutes: int) -> SchedulingReply:
    """What Ray's autoscaler would launch and end with so many tasks waiting and workers idle."""
    resources = config.get_node_resources("gpu_worker")

    def idle_worker(number: int) -> AutoscalerInstance:
        state = NodeState(
            node_id=bytes([number]) * 28,
            ray_node_type_name="gpu_worker",
            total_resources=resources,
            available_resources=resources,
            idle_duration_ms=idle_minutes * 60_000,
        )
        instance = Instance(instance_id=str(number), instance_type="gpu_worker", status=Instance.RAY_RUNNING, node_kind=NodeKind.WORKER)
        return AutoscalerInstance(cloud_instance_id=f"i-{number}", ray_node=state, im_instance=instance)

    demand = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * num_gpu_tasks
    return ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=config.disable_launch_config_check(),
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            idle_timeout_s=config.get_idle_timeout_s(),
            resource_requests=ResourceRequestUtil.group_by_count(demand),
            current_instances=[idle_worker(number) for number in range(num_idle)],
        )
    )


@contextmanager
def enforced_policies(endpoint: str) -> Iterator[None]:
    """moto checks IAM policies within this context, and nothing outside it."""

    def after(num_calls: str) -> None:
        request = Request(f"{endpoint}/moto-api/reset-auth", num_calls.encode(), {"Content-Type": "text/plain"})
        urlopen(request, timeout=10).close()

    after("0")
    try:
        yield
    finally:
        after("inf")
