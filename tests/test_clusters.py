"""The AWS cluster: what its files open and spend, and a rehearsal of `ray up`, scaling and `ray down` against a local moto server.

The rehearsal runs Ray's command line, its AWS provider, its autoscaler's scheduler and its installer as they are. What is not real is
AWS (moto keeps its books) and the far side of SSH: `ssh` and `rsync` are programs that write down what they were asked, the second one
keeping the files, so that no test reaches for an address that belongs to someone else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from cfnlint import api as cfnlint
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

ROOT = Path(__file__).parent.parent
CLUSTER_FILE = ROOT / "clusters" / "aws.yaml"
ACCESS_FILE = ROOT / "clusters" / "aws_access.yaml"
BUCKET = "the-store"
SSH_FROM = "203.0.113.7/32"
TOKEN = "rehearsal-token-0123456789abcdef"
COMMAND_TIMEOUT_S = 50

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
    return yaml.safe_load(CLUSTER_FILE.read_text())


# ---------------------------------------------------------------- the files


def test_the_cluster_file_meets_rays_own_schema() -> None:
    validate_config(prepare_config(cluster_config()))


def test_a_field_that_ray_does_not_know_is_refused_by_that_schema() -> None:
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config({**cluster_config(), "min_worker": 1}))


def test_workers_are_spot_and_start_at_none_and_the_head_is_on_demand() -> None:
    config = prepare_config(cluster_config())
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["max_workers"] == 0 and head["resources"] == {"CPU": 0}
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0
    assert config["provider"]["cache_stopped_nodes"] is False  # Ray's default leaves stopped heads with their disks


def test_all_nodes_have_one_image_and_encrypted_disks_that_end_with_them() -> None:
    nodes = [t["node_config"] for t in cluster_config()["available_node_types"].values()]
    assert len({n["ImageId"] for n in nodes}) == 1  # Ray wants the same Python everywhere
    for node in nodes:
        (disk,) = (d["Ebs"] for d in node["BlockDeviceMappings"])
        assert disk["VolumeSize"] >= 150 and disk["Encrypted"] and disk["DeleteOnTermination"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"


def test_servers_of_the_head_listen_on_its_loopback_only() -> None:
    commands = " ".join(cluster_config()["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert re.search(r"mlflow server --host 127\.0\.0\.1 ", commands)
    assert "0.0.0.0" not in CLUSTER_FILE.read_text()


def test_the_cluster_file_adds_no_rule_to_the_security_group() -> None:
    config = cluster_config()
    assert set(config["provider"]["security_group"]) == {"GroupName"}
    assert not any("SecurityGroupIds" in t["node_config"] for t in config["available_node_types"].values())


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").iterdir()), ids=lambda p: p.name)
def test_no_file_holds_a_credential(path: Path) -> None:
    text = path.read_text()
    for pattern in (r"A[KS]IA[0-9A-Z]{12,}", r"BEGIN [A-Z ]*PRIVATE KEY", r"(?i)(secret_access_key|auth_token|password)\s*[:=]\s*[\w/+]{8,}", r"\bhf_\w{16,}"):
        assert not re.search(pattern, text)
    assert "aws_credentials" not in text


def test_what_is_sent_is_what_an_installation_needs() -> None:
    mounts = cluster_config()["file_mounts"]
    sent = {local for remote, local in mounts.items() if local != "~/.ray/auth_token"}
    assert sent == {"core", "sweep", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / path).exists() for path in sent - {"README.md"})
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_every_installation_is_with_the_pins() -> None:
    config = prepare_config(cluster_config())
    commands = [*config["head_setup_commands"], *config["worker_setup_commands"]]
    installs = [command for command in commands if re.search(r"\bpip install\b", command)]
    assert len(installs) == 2  # the same one on head and workers
    for command in installs:
        assert "-c ~/build/constraints.txt ~/build" in command
    pins = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^boto3==", pins, re.M) and re.search(r"^ray==", pins, re.M)


def test_every_start_of_ray_demands_a_token() -> None:
    config = cluster_config()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [c for c in commands if "ray start" in c]
        assert len(starts) == 1 and "RAY_AUTH_MODE=token ray start" in starts[0]


def test_the_shell_accepts_every_command() -> None:
    config = prepare_config(cluster_config())
    for name in ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[name]:
            subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)


def test_cloudformation_accepts_the_access_file() -> None:
    assert cfnlint.lint_file(ACCESS_FILE) == []


# ---------------------------------------------------------------- the rehearsal


@dataclass(frozen=True)
class Machine:
    """An EC2 instance as moto has it, with the size of its disk."""

    facts: dict[str, Any]
    volume: dict[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.facts["Tags"]}

    @property
    def profile(self) -> str:
        return self.facts["IamInstanceProfile"]["Arn"].rpartition("/")[2]


@dataclass(frozen=True)
class Rehearsal:
    """What was seen at each step."""

    endpoint: str
    region: str
    home: Path
    machines: Path
    output: str
    head: Machine
    head_calls: list[list[str]]
    to_launch: dict[str, int]
    to_end_when_idle: dict[int, int]
    workers: list[Machine]
    worker_calls: list[list[str]]
    provider_calls: set[str]
    left_after_idle: list[Machine]
    left_after_down: list[Machine]


def run_ray(*arguments: str) -> str:
    """Run Ray's command line in the checkout; ends it, by its process id, if it does not end in time."""
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
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return output


def running(region: str) -> list[Machine]:
    ec2 = boto3.client("ec2", region)
    states = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    reservations = ec2.describe_instances(Filters=states)["Reservations"]
    instances = [instance for reservation in reservations for instance in reservation["Instances"]]
    disks = {i["InstanceId"]: i["BlockDeviceMappings"][0]["Ebs"]["VolumeId"] for i in instances}
    volumes = {v["VolumeId"]: v for v in ec2.describe_volumes(VolumeIds=list(disks.values()))["Volumes"]} if disks else {}
    return [Machine(i, volumes[disks[i["InstanceId"]]]) for i in instances]


def scheduled(config: AutoscalingConfig, demand: dict[str, float], count: int, idle_s: tuple[float, ...] = ()) -> Any:
    """What Ray's autoscaler would launch and end, with `count` tasks waiting and workers idle for `idle_s`."""
    resources = config.get_node_resources("gpu_worker")

    def node(number: int, kind: Any, node_type: str, idle: float) -> AutoscalerInstance:
        state = NodeState(
            node_id=bytes([number]) * 28,
            instance_id=f"i-{number}",
            ray_node_type_name=node_type,
            total_resources=resources,
            available_resources=resources,
            idle_duration_ms=int(idle * 1000),
        )
        instance = Instance(
            instance_id=str(number), instance_type=node_type, status=Instance.RAY_RUNNING, node_id=f"{number}", node_kind=kind
        )
        return AutoscalerInstance(cloud_instance_id=f"i-{number}", ray_node=state, im_instance=instance)

    return ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=config.disable_launch_config_check(),
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            idle_timeout_s=config.get_idle_timeout_s(),
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * count),
            current_instances=[node(i + 1, NodeKind.WORKER, "gpu_worker", idle) for i, idle in enumerate(idle_s)],
        )
    )


def calls(log: Path, start: int = 0) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()[start:]]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """`ray up`, two workers, their idle end, `ray down`."""
    scratch = tmp_path_factory.mktemp("rehearsal")
    programs, home, machines, log = scratch / "bin", scratch / "home", scratch / "machines", scratch / "log"
    for directory in (programs, home / ".ray", machines):
        directory.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    (scratch / "stand_in.py").write_text(STAND_IN)
    for name in ("ssh", "rsync"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(scratch / "stand_in.py"))} {name} "$@"\n')
        program.chmod(0o755)
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
            "REHEARSAL_LOG": str(log),
            "REHEARSAL_MACHINES": str(machines),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(scratch),
        }.items():
            environment.setenv(name, value)
        try:
            yield _rehearse(endpoint, region, home, machines, log, environment)
        finally:
            server.stop()


def _rehearse(endpoint: str, region: str, home: Path, machines: Path, log: Path, environment: pytest.MonkeyPatch) -> Rehearsal:
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
    output = run_ray("up", str(CLUSTER_FILE), "--yes", "--no-config-cache")
    (head,) = running(region)
    head_calls = calls(log)

    # From here on the head's view: its home directory, and the cluster file that `ray up` sent there.
    head_home = machines / head.facts["PublicIpAddress"]
    environment.setenv("HOME", str(head_home))
    reader = FileConfigReader(str(head_home / "ray_bootstrap_config.yaml"), skip_content_hash=True)
    config = reader.get_cached_autoscaling_config()
    reply = scheduled(config, {"CPU": 1, "GPU": 1}, 20)
    to_launch = {request.instance_type: request.count for request in reply.to_launch}
    to_end = {minutes: len(scheduled(config, {}, 0, (minutes * 60.0,) * 2).to_terminate) for minutes in (5, 60)}

    provider = _get_node_provider(config.get_provider_config(), config.get_config("cluster_name"), use_cache=False)
    provider_calls: set[str] = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register("before-call.ec2", lambda model, **_: provider_calls.add(model.name))
    adapter = NodeProviderAdapter(provider, reader)
    for _ in range(2):  # one by one, because moto starts the least number of a request, which Ray gives as 1
        adapter._launch_nodes_by_type("gpu_worker", 1, "rehearsal")
    assert adapter.poll_errors() == []
    workers = [machine for machine in running(region) if machine.tags["ray-node-type"] == "worker"]
    assert len(adapter.get_non_terminated()) == 3
    before = len(calls(log))
    first = Instance(instance_id="1", cloud_instance_id=workers[0].facts["InstanceId"], instance_type="gpu_worker")
    RayInstaller(provider, config).install_ray(first, head.facts["PrivateIpAddress"])
    worker_calls = calls(log, before)
    adapter._do_terminate([worker.facts["InstanceId"] for worker in workers], "rehearsal")
    assert adapter.poll_errors() == []
    left_after_idle = running(region)

    environment.setenv("HOME", str(home))
    run_ray("down", str(CLUSTER_FILE), "--yes")
    return Rehearsal(
        endpoint, region, home, machines, output, head, head_calls, to_launch, to_end, workers, worker_calls, provider_calls,
        left_after_idle, running(region),
    )  # fmt: skip


def commands_of(recorded: list[list[str]]) -> list[str]:
    return [call[-1] for call in recorded if call[0] == "ssh"]


def position(commands: list[str], text: str) -> int:
    found = [i for i, command in enumerate(commands) if text in command]
    assert found, f"no command has {text!r}"
    return found[0]


def test_ray_up_starts_one_on_demand_head_as_described(rehearsal: Rehearsal) -> None:
    wanted = cluster_config()["available_node_types"]["head"]["node_config"]
    head = rehearsal.head
    assert head.tags["ray-node-type"] == "head" and head.tags["ray-cluster-name"] == "explainability-sweep"
    assert "InstanceLifecycle" not in head.facts and "SpotInstanceRequestId" not in head.facts
    assert head.facts["InstanceType"] == wanted["InstanceType"] and head.facts["ImageId"] == wanted["ImageId"]
    assert head.volume["Size"] == wanted["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] and head.volume["Encrypted"]
    assert head.profile == "explainability-sweep-head"


def test_nothing_comes_in_from_outside_but_ssh_from_the_range_named(rehearsal: Rehearsal) -> None:
    (group,) = {g["GroupId"] for m in [rehearsal.head, *rehearsal.workers] for g in m.facts["SecurityGroups"]}
    ec2 = boto3.client("ec2", rehearsal.region)
    (described,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert described["GroupName"] == "explainability-sweep"
    from_outside = [p for p in described["IpPermissions"] if p["IpRanges"] or p.get("Ipv6Ranges") or p.get("PrefixListIds")]
    assert [(p["FromPort"], p["ToPort"], p["IpProtocol"], p["IpRanges"]) for p in from_outside] == [(22, 22, "tcp", [{"CidrIp": SSH_FROM}])]
    between = [p for p in described["IpPermissions"] if p not in from_outside]
    assert {pair["GroupId"] for p in between for pair in p["UserIdGroupPairs"]} == {group}


def test_the_head_gets_the_sources_and_starts_ray_after_the_pins_are_in(rehearsal: Rehearsal) -> None:
    machine = rehearsal.machines / rehearsal.head.facts["PublicIpAddress"]
    sources = machine / "explainability-sweep"
    assert {p.name for p in sources.iterdir()} <= {"core", "sweep", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert (sources / "core" / "miniature" / "base" / "open_clip_model.safetensors").is_file()
    commands = commands_of(rehearsal.head_calls)
    assert position(commands, "pip install") < position(commands, "ray start --head") < position(commands, "mlflow server")
    assert "export RAY_enable_autoscaler_v2=1" in commands[position(commands, "ray start --head")]
    assert "RAY_OVERRIDE_RESOURCES" in commands[position(commands, "ray start --head")]
    for call in rehearsal.head_calls:
        if call[0] == "rsync":
            assert "__pycache__" in call[call.index("--exclude") + 1]


def test_the_token_reaches_every_node_as_a_file_and_is_written_nowhere_else(rehearsal: Rehearsal) -> None:
    for machine in (rehearsal.head.facts["PublicIpAddress"], rehearsal.workers[0].facts["PrivateIpAddress"]):
        assert (rehearsal.machines / machine / ".ray" / "auth_token").read_text() == TOKEN
    for recorded in (rehearsal.head_calls, rehearsal.worker_calls):
        assert TOKEN not in json.dumps(recorded)
        commands = commands_of(recorded)
        assert position(commands, "chmod 600 ~/.ray/auth_token") < position(commands, "RAY_AUTH_MODE=token ray start")
    assert TOKEN not in rehearsal.output
    assert TOKEN not in json.dumps([rehearsal.head.facts, rehearsal.workers[0].facts], default=str)
    sent_config = rehearsal.machines / rehearsal.head.facts["PublicIpAddress"] / "ray_bootstrap_config.yaml"
    assert TOKEN not in sent_config.read_text()


def test_the_autoscaler_goes_from_no_worker_to_the_ceiling_and_back(rehearsal: Rehearsal) -> None:
    assert rehearsal.to_launch == {"gpu_worker": 8}  # for 20 waiting tasks
    assert rehearsal.to_end_when_idle == {5: 0, 60: 2}  # minutes idle: workers ended, of two
    assert [m.tags["ray-node-type"] for m in rehearsal.left_after_idle] == ["head"]


def test_workers_are_spot_machines_with_a_role_that_starts_nothing(rehearsal: Rehearsal) -> None:
    wanted = cluster_config()["available_node_types"]["gpu_worker"]["node_config"]
    assert len(rehearsal.workers) == 2
    for worker in rehearsal.workers:
        assert worker.facts["InstanceLifecycle"] == "spot"
        assert worker.facts["InstanceType"] == wanted["InstanceType"]
        assert worker.volume["Size"] == wanted["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
        assert worker.profile == "explainability-sweep-worker"
    commands = commands_of(rehearsal.worker_calls)
    assert position(commands, "torch.cuda.is_available()") < position(commands, "ray start --address=$RAY_HEAD_IP:6379")


def test_ray_down_leaves_nothing_running_or_stopped(rehearsal: Rehearsal) -> None:
    assert rehearsal.left_after_down == []


def test_the_heads_role_allows_what_its_autoscaler_does_and_little_more(rehearsal: Rehearsal) -> None:
    iam = boto3.client("iam", rehearsal.region)
    document = iam.get_role_policy(RoleName="explainability-sweep-head", PolicyName="scale-workers")["PolicyDocument"]
    allowed: set[str] = set()
    for statement in document["Statement"]:
        actions = statement["Action"]
        allowed |= {actions} if isinstance(actions, str) else set(actions)
    needed = {f"ec2:{name}" for name in rehearsal.provider_calls}
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "ec2:DescribeInstances"} <= needed
    # The image's name is resolved and the workers' role handed over by EC2, with the caller's rights.
    assert allowed == needed | {"ssm:GetParameters", "iam:PassRole"}


def test_a_nodes_role_reaches_the_stores_bucket_and_no_other(rehearsal: Rehearsal) -> None:
    boto3.client("s3", rehearsal.region).create_bucket(
        Bucket="another", CreateBucketConfiguration={"LocationConstraint": rehearsal.region}
    )
    sts = boto3.client("sts", rehearsal.region)
    role = boto3.client("iam", rehearsal.region).get_role(RoleName="explainability-sweep-worker")["Role"]["Arn"]
    given = sts.assume_role(RoleArn=role, RoleSessionName="rehearsal")["Credentials"]
    session = boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], rehearsal.region)
    with enforced_policies(rehearsal.endpoint):
        s3 = session.client("s3")
        s3.put_object(Bucket=BUCKET, Key="sweep/artifact", Body=b"1")
        assert s3.get_object(Bucket=BUCKET, Key="sweep/artifact")["Body"].read() == b"1"
        assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 1
        s3.delete_object(Bucket=BUCKET, Key="sweep/artifact")
        for forbidden in (
            lambda: s3.put_object(Bucket="another", Key="artifact", Body=b"1"),
            lambda: s3.list_objects_v2(Bucket="another"),
            lambda: session.client("ec2").describe_instances(),
        ):
            with pytest.raises(ClientError, match="AccessDenied|not authorized|UnauthorizedOperation"):
                forbidden()


class enforced_policies:
    """moto checks IAM policies within this context, and nothing outside it."""

    def __init__(self, endpoint: str) -> None:
        self.address = f"{endpoint}/moto-api/reset-auth"

    def __enter__(self) -> None:
        self._after(0)

    def __exit__(self, *_: object) -> None:
        self._after(10**9)

    def _after(self, num_calls: int) -> None:
        urlopen(Request(self.address, data=str(num_calls).encode(), method="POST"), timeout=10).close()
