"""The AWS cluster: what its files open and spend, and what happens in a rehearsal against a local stand-in for AWS."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from aws_rehearsal import (
    ACCESS_FILE,
    BUCKET,
    CLUSTER_FILE,
    NUM_WORKERS,
    ROOT,
    SSH_FROM,
    TOKEN,
    Rehearsal,
    cluster_config,
    enforced_policies,
    rehearse,
    staged,
)
from botocore.exceptions import ClientError
from cfnlint import api as cfnlint
from ray.autoscaler._private.util import prepare_config, validate_config

from sweep.store.node_cache import LIMIT_VARIABLE

SENT = {"core", "sweep", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
CREDENTIALS = (
    r"A[KS]IA[0-9A-Z]{12,}",
    r"BEGIN [A-Z ]*PRIVATE KEY",
    r"(?i)(secret_access_key|auth_token|password)\s*[:=]\s*[\w/+]{8,}",
    r"\bhf_\w{16,}",
    r"aws_credentials",
)


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
    assert config["provider"]["cache_stopped_nodes"] is False  # Ray's default leaves a stopped head with its disk


def test_all_nodes_have_one_image_and_encrypted_disks_that_end_with_them() -> None:
    nodes = [node_type["node_config"] for node_type in cluster_config()["available_node_types"].values()]
    assert len({node["ImageId"] for node in nodes}) == 1  # Ray wants the same Python everywhere
    for node in nodes:
        (disk,) = (mapping["Ebs"] for mapping in node["BlockDeviceMappings"])
        assert disk["VolumeSize"] >= 150 and disk["Encrypted"] and disk["DeleteOnTermination"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"


def test_the_copies_on_a_worker_leave_room_on_its_disk_and_every_process_of_ray_there_knows_the_limit() -> None:
    config = cluster_config()
    (disk,) = (mapping["Ebs"] for mapping in config["available_node_types"]["gpu_worker"]["node_config"]["BlockDeviceMappings"])
    (start,) = (command for command in config["worker_start_ray_commands"] if "ray start" in command)
    (limit,) = re.findall(rf"; {LIMIT_VARIABLE}=(\d+) RAY_AUTH_MODE=token ray start", start)
    assert int(limit) * 1e9 < disk["VolumeSize"] * 2**30 - 120e9  # the image, the environment, base models, what Ray spills
    assert 125 < disk["Throughput"] <= 750  # what gp3 allows with its 3000 operations a second


def test_the_hubs_token_is_mounted_by_those_who_take_the_comment_sign_away() -> None:
    mount = "~/.cache/huggingface/token: ~/.cache/huggingface/token"
    text = CLUSTER_FILE.read_text()
    assert text.count(f"  # {mount}\n") == 1
    wanted = yaml.safe_load(text.replace(f"# {mount}", mount))["file_mounts"]
    assert wanted == {**yaml.safe_load(text)["file_mounts"], "~/.cache/huggingface/token": "~/.cache/huggingface/token"}


def test_the_heads_role_may_launch_the_workers_instance_type() -> None:
    worker = cluster_config()["available_node_types"]["gpu_worker"]["node_config"]
    assert f'"ec2:InstanceType": {worker["InstanceType"]}\n' in ACCESS_FILE.read_text()


def test_servers_of_the_head_listen_on_its_loopback_only() -> None:
    commands = " ".join(cluster_config()["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert re.search(r"mlflow server --host 127\.0\.0\.1 ", commands)
    assert "0.0.0.0" not in CLUSTER_FILE.read_text()


def test_the_cluster_file_adds_no_rule_to_the_security_group() -> None:
    config = cluster_config()
    assert set(config["provider"]["security_group"]) == {"GroupName"}
    assert not any("SecurityGroupIds" in node_type["node_config"] for node_type in config["available_node_types"].values())


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").iterdir()), ids=lambda path: path.name)
def test_no_file_holds_a_credential(path: Path) -> None:
    for pattern in CREDENTIALS:
        assert not re.search(pattern, path.read_text())


def test_only_what_an_installation_needs_is_sent_and_all_of_it_exists() -> None:
    mounts = cluster_config()["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert set(mounts.values()) == SENT
    assert all((ROOT / path).exists() for path in mounts.values())


def test_every_installation_is_with_the_pins() -> None:
    config = prepare_config(cluster_config())  # Ray's defaults add an install of their own unless told otherwise
    commands = [*config["head_setup_commands"], *config["worker_setup_commands"]]
    installs = [command for command in commands if re.search(r"\bpip install\b", command)]
    assert len(installs) == 2  # one on the head, one on workers
    assert all("pip install -q --disable-pip-version-check -c ~/build/constraints.txt ~/build" in command for command in installs)
    assert re.search(r"^boto3==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_every_start_of_ray_demands_a_token() -> None:
    config = cluster_config()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1 and "RAY_AUTH_MODE=token ray start" in starts[0]


def test_the_shell_parses_every_command() -> None:
    config = prepare_config(cluster_config())
    for name in ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[name]:
            subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)


def test_cloudformations_linter_accepts_the_access_file() -> None:
    assert cfnlint.lint_file(ACCESS_FILE) == []


# ---------------------------------------------------------------- the rehearsal


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with staged(tmp_path_factory.mktemp("rehearsal")) as stage:
        yield rehearse(stage)


def test_ray_up_starts_one_on_demand_head_as_described(rehearsal: Rehearsal) -> None:
    wanted = cluster_config()["available_node_types"]["head"]["node_config"]
    head = rehearsal.head
    assert head.tags["ray-node-type"] == "head" and head.tags["ray-cluster-name"] == "explainability-sweep"
    assert "InstanceLifecycle" not in head.facts and "SpotInstanceRequestId" not in head.facts
    assert head.facts["InstanceType"] == wanted["InstanceType"] and head.facts["ImageId"] == wanted["ImageId"]
    assert head.volume["Size"] == wanted["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] and head.volume["Encrypted"]
    assert head.profile == "explainability-sweep-head"


def test_nothing_comes_in_from_outside_but_ssh_from_the_range_named(rehearsal: Rehearsal) -> None:
    (group,) = {g["GroupId"] for machine in [rehearsal.head, *rehearsal.workers] for g in machine.facts["SecurityGroups"]}
    (described,) = boto3.client("ec2", rehearsal.region).describe_security_groups(GroupIds=[group])["SecurityGroups"]
    rules = described["IpPermissions"]
    from_outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges") or rule.get("PrefixListIds")]
    (ssh,) = from_outside
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpProtocol"], ssh["IpRanges"]) == (22, 22, "tcp", [{"CidrIp": SSH_FROM}])
    between_nodes = [rule for rule in rules if rule not in from_outside]
    assert {pair["GroupId"] for rule in between_nodes for pair in rule["UserIdGroupPairs"]} == {group}


def test_the_head_gets_the_sources_and_starts_ray_after_the_pins_are_in(rehearsal: Rehearsal) -> None:
    sources = rehearsal.head_calls.files / "explainability-sweep"
    assert {path.name for path in sources.iterdir()} == SENT
    assert (sources / "core" / "miniature" / "base" / "open_clip_model.safetensors").is_file()
    calls = rehearsal.head_calls
    assert calls.position("pip install") < calls.position("ray start --head") < calls.position("mlflow server")
    start = calls.commands[calls.position("ray start --head")]
    assert "RAY_OVERRIDE_RESOURCES" in start and '{"CPU":0}' in start
    for call in calls.recorded:
        assert call[0] != "rsync" or "__pycache__" in call


def test_the_token_reaches_every_node_as_a_file_and_is_written_nowhere_else(rehearsal: Rehearsal) -> None:
    for calls in (rehearsal.head_calls, rehearsal.worker_calls):
        assert (calls.files / ".ray" / "auth_token").read_text() == TOKEN
        assert calls.position("chmod 600 ~/.ray/auth_token") < calls.position("RAY_AUTH_MODE=token ray start")
        assert TOKEN not in json.dumps(calls.recorded)
    assert TOKEN not in rehearsal.output
    assert TOKEN not in json.dumps([machine.facts for machine in [rehearsal.head, *rehearsal.workers]], default=str)
    assert TOKEN not in (rehearsal.head_calls.files / "ray_bootstrap_config.yaml").read_text()


def test_the_autoscaler_goes_from_no_worker_to_the_ceiling_and_back(rehearsal: Rehearsal) -> None:
    assert rehearsal.num_to_launch == {"gpu_worker": 8}  # for 20 tasks that wait
    assert rehearsal.num_to_end == {5: 0, 60: 2}  # of two workers, by the minutes they have been idle
    assert [machine.tags["ray-node-type"] for machine in rehearsal.left_after_idle] == ["head"]


def test_workers_are_spot_machines_that_join_only_with_a_gpu(rehearsal: Rehearsal) -> None:
    wanted = cluster_config()["available_node_types"]["gpu_worker"]["node_config"]
    assert len(rehearsal.workers) == NUM_WORKERS
    for worker in rehearsal.workers:
        assert worker.facts["InstanceLifecycle"] == "spot"
        assert worker.facts["InstanceType"] == wanted["InstanceType"]
        assert worker.volume["Size"] == wanted["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
        assert worker.profile == "explainability-sweep-worker"
    calls = rehearsal.worker_calls
    assert calls.position("torch.cuda.is_available()") < calls.position("ray start --address=$RAY_HEAD_IP:6379")


def test_ray_down_leaves_nothing_running_or_stopped(rehearsal: Rehearsal) -> None:
    assert rehearsal.left_after_down == []


def test_the_heads_role_allows_what_its_autoscaler_calls_and_no_more(rehearsal: Rehearsal) -> None:
    iam = boto3.client("iam", rehearsal.region)
    document = iam.get_role_policy(RoleName="explainability-sweep-head", PolicyName="scale-workers")["PolicyDocument"]
    allowed: set[str] = set()
    for statement in yaml.safe_load(document)["Statement"]:  # moto gives it as a dict's text, which is YAML
        actions = statement["Action"]
        allowed |= {actions} if isinstance(actions, str) else set(actions)
    called = {f"ec2:{name}" for name in rehearsal.provider_calls}
    assert "ec2:RunInstances" in called
    # The image's name is resolved and the workers' role handed over by EC2, with the caller's rights.
    assert allowed == called | {"ssm:GetParameters", "iam:PassRole"}


def test_a_workers_role_reaches_the_stores_bucket_and_nothing_else(rehearsal: Rehearsal) -> None:
    region = rehearsal.region
    boto3.client("s3", region).create_bucket(Bucket="another", CreateBucketConfiguration={"LocationConstraint": region})
    role = boto3.client("iam", region).get_role(RoleName="explainability-sweep-worker")["Role"]["Arn"]
    given = boto3.client("sts", region).assume_role(RoleArn=role, RoleSessionName="rehearsal")["Credentials"]
    session = boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], region)
    s3, ec2 = session.client("s3"), session.client("ec2")
    with enforced_policies(rehearsal.endpoint):
        s3.put_object(Bucket=BUCKET, Key="sweep/artifact", Body=b"1")
        assert s3.get_object(Bucket=BUCKET, Key="sweep/artifact")["Body"].read() == b"1"
        assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 1
        s3.delete_object(Bucket=BUCKET, Key="sweep/artifact")
        for forbidden in (
            lambda: s3.put_object(Bucket="another", Key="artifact", Body=b"1"),
            lambda: s3.list_objects_v2(Bucket="another"),
            ec2.describe_instances,
        ):
            with pytest.raises(ClientError, match="AccessDenied|not authorized|UnauthorizedOperation"):
                forbidden()
