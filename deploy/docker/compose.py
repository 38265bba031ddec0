"""docker-compose.yml as text, from the methods there are: `tenfold-admin compose render > docker-compose.yml`.

A method is an API and a worker (one for a CPU, one for a GPU, by profile), a user of the broker and a network of its
own, on which it meets the gateway and the broker and nobody else. All methods that train share one trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.docker.acl import GATEWAY, SHARED_WORKER, TRAINER, broker_users
from shared.service import Service

_HEAD = """\
# Written by `tenfold-admin compose render`, from deploy/methods.py and deploy/docker/compose.py: change those.
# How to use it: docs/guide/containers.md. Needs Docker Engine 25 and Compose 2.24, or newer.
name: tenfold

x-container: &container
  restart: unless-stopped
  user: ${CONTAINER_USER:-10001:10001}
  init: true
  read_only: true
  tmpfs: ["/tmp:mode=1777"]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  logging: {driver: json-file, options: {max-size: 10m, max-file: "3"}}

x-check: &check {interval: 10s, timeout: 5s, retries: 3, start_period: 120s, start_interval: 1s}

x-redis: &redis
  <<: *container
  image: valkey/valkey:9-alpine
  stop_grace_period: 30s
  healthcheck:
    <<: *check
    test: [CMD, valkey-cli, --user, health, --pass, "", --no-auth-warning, -e, ping]

x-api-image: &api-image
  image: tenfold-api
  build: &build
    context: .
    dockerfile: deploy/docker/Dockerfile
    target: api
    args: {PIP_EXTRA_INDEX_URL: "${PIP_EXTRA_INDEX_URL:-}"}

x-worker-image: &worker-image
  image: tenfold-worker
  build: {<<: *build, target: worker}

x-environment: &environment
  TENFOLD_ENVIRONMENT: staging
  TENFOLD_HOME: /state
  TENFOLD_SECRETS_DIR: /run/secrets
  TENFOLD_LOG_LEVEL: ${TENFOLD_LOG_LEVEL:-info}

x-method-environment: &method-environment
  <<: *environment
  TENFOLD_DOOR_URL: http://gateway:8081

x-worker-environment: &worker-environment
  <<: *method-environment
  HOME: /tmp
  TENFOLD_HEARTBEAT_PATH: /tmp/heartbeat
  TENFOLD_TRAINER_IDLE_S: "0"
  TENFOLD_MODEL_MEMORY_MIB: "${TENFOLD_MODEL_MEMORY_MIB:-1024}"

x-cpu-environment: &cpu-environment {<<: *worker-environment, TENFOLD_DEVICE: cpu}
x-gpu-environment: &gpu-environment {<<: *worker-environment, TENFOLD_DEVICE: cuda}
x-gpu-device: &gpu-device {reservations: {devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]}}

x-files: &files {type: bind, source: ./.containers/files, target: /state/files, bind: {create_host_path: false}}
x-models: &models {type: bind, source: ./.containers/models, target: /state/models, bind: {create_host_path: false}}
x-models-only-read: &models-only-read {<<: *models, read_only: true}
x-internal-secret: &internal-secret {source: internal_secret, target: tenfold_internal_secret}

x-api: &api
  <<: [*api-image, *container]
  environment: *method-environment
  volumes: [*files, *models-only-read]
  mem_limit: 256m
  pids_limit: 128
  stop_grace_period: 30s
  depends_on: {broker-redis: {condition: service_healthy}}
  healthcheck:
    <<: *check
    test: [CMD, python, -m, deploy.health, "http://127.0.0.1:8000/readyz"]

x-worker: &worker
  <<: [*worker-image, *container]
  environment: *cpu-environment
  mem_limit: ${WORKER_MEMORY:-2g}
  pids_limit: 512
  stop_grace_period: 40s
  healthcheck:
    <<: *check
    test: [CMD, python, -m, deploy.health, /tmp/heartbeat]

services:
  setup:
    <<: [*api-image, *container]
    profiles: [setup]
    command: [tenfold-admin, compose, init, /project@PLACES@]
    restart: "no"
    user: "0:0"
    cap_add: [CHOWN, DAC_OVERRIDE, FOWNER]
    network_mode: none
    volumes: [{type: bind, source: ., target: /project}]
    mem_limit: 256m
    pids_limit: 64

  admin:
    <<: [*worker-image, *container]
    profiles: [setup]
    entrypoint: [tenfold-admin]
    command: [weights, list]
    restart: "no"
    environment: *environment
    network_mode: none
    volumes: [*models]
    mem_limit: ${WORKER_MEMORY:-2g}
    pids_limit: 512
"""

_PLATFORM = """
  broker-redis:
    <<: *redis
    command:
      [valkey-server, --bind, 0.0.0.0, --port, "6379", --dir, /data, --aclfile, /run/secrets/broker.acl,
       --appendonly, "yes", --appendfsync, everysec, --aof-load-truncated, "yes", --save, "",
       --maxmemory, 512mb, --maxmemory-policy, noeviction, --stream-node-max-bytes, "512"]
    volumes: [{{type: bind, source: ./.containers/broker, target: /data, bind: {{create_host_path: false}}}}]
    secrets: [broker.acl]
    networks: [{units}]
    mem_limit: 1g
    pids_limit: 64

  custody-redis:
    <<: *redis
    command:
      [valkey-server, --bind, 0.0.0.0, --port, "6379", --dir, /data, --aclfile, /run/secrets/custody.acl,
       --appendonly, "yes", --appendfsync, always, --aof-load-truncated, "no", --save, "",
       --maxmemory, 128mb, --maxmemory-policy, noeviction]
    volumes: [{{type: bind, source: ./.containers/custody, target: /data, bind: {{create_host_path: false}}}}]
    secrets: [custody.acl]
    networks: [custody]
    mem_limit: 384m
    pids_limit: 64

  gateway:
    <<: [*api-image, *container]
    command: [python, -m, deploy.run, gateway]
    environment:
      <<: *environment
      TENFOLD_HOST: 0.0.0.0
      TENFOLD_PORT: "8080"
      TENFOLD_DOOR_URL: http://0.0.0.0:8081
      TENFOLD_KEK_PATH: /run/secrets/kek.json
      TENFOLD_DRAIN_S: "5"
      TENFOLD_SERVICES: {urls}
    volumes:
      - *files
      - *models
      - {{type: bind, source: ./.containers/audit, target: /state/audit, bind: {{create_host_path: false}}}}
    secrets:
      - *internal-secret
      - {{source: api_key_pepper, target: tenfold_api_key_pepper}}
      - {{source: kek.json, target: kek.json}}
      - {{source: custody_url, target: tenfold_custody_url}}
      - {{source: broker_url.gateway, target: tenfold_broker_url}}
    networks: [public, custody, {units}]
    ports: ["127.0.0.1:${{TENFOLD_PORT:-8080}}:8080"]
    mem_limit: 512m
    pids_limit: 128
    stop_grace_period: 40s
    depends_on: {{broker-redis: {{condition: service_healthy}}, custody-redis: {{condition: service_healthy}}}}
    healthcheck:
      <<: *check
      test: [CMD, python, -m, deploy.health, "http://127.0.0.1:8080/readyz"]
"""

_API = """
  {name}-api:
    <<: *api
    command: [python, -m, deploy.run, api, --host, 0.0.0.0, --port, "8000", --service, "{place}"]
    secrets: [*internal-secret, {{source: broker_url.{name}, target: tenfold_broker_url}}]
    networks: [{name}]
"""

_WORKER = """
  {service}: &{service}
    <<: *worker
    profiles: [{profile}]
    command: [python, -m, deploy.run, {process}{places}]
    volumes: [*files, {models}]
    secrets: [*internal-secret, {{source: broker_url.{user}, target: tenfold_broker_url}}]
    networks: [{user}]
    depends_on: {{{needs}}}
"""

_GPU = """
  {service}:
    <<: *{based}
    profiles: [{profiles}]
"""

# Said by each service itself: readers of YAML do not agree on which of two merged mappings wins.
_GPU_LIMITS = """\
    environment: *gpu-environment
    mem_limit: ${GPU_WORKER_MEMORY:-8g}
    shm_size: 1g
    deploy: {resources: *gpu-device}
"""


_OWN_NETWORKS = frozenset({"public", "custody"})


@dataclass(frozen=True)
class _Method:
    name: str
    place: str
    """module:attribute of its service"""
    trains: bool


def render(services: Mapping[str, Service]) -> str:
    """The whole file. `services` by their places, as in `deploy/methods.py`."""
    methods = [_Method(service.name, place, service.trains) for place, service in services.items()]
    training = [method for method in methods if method.trains]
    users = broker_users([method.name for method in methods], [method.name for method in training])
    if taken := users.keys() & _OWN_NETWORKS:
        raise ValueError(f"no method may be named {', '.join(sorted(taken))}: these are networks of the gateway")
    urls = ",".join(f"{method.name}=http://{method.name}-api:8000" for method in methods)
    parts = [_HEAD.replace("@PLACES@", _places(methods)), _PLATFORM.format(units=", ".join(users), urls=urls)]
    for method in methods:
        worker = f"{method.name}-worker"
        parts += [
            _API.format(name=method.name, place=method.place),
            _worker(worker, "worker", method.name, [method], "cpu"),
            _GPU.format(service=f"{worker}-gpu", based=worker, profiles="gpu"),
            _GPU_LIMITS,
        ]
    if training:
        parts += [
            _worker(TRAINER, "trainer", TRAINER, training, "cpu"),
            _GPU.format(service=f"{TRAINER}-gpu", based=TRAINER, profiles="gpu, gpu-shared"),
            _GPU_LIMITS,
        ]
    parts += [_worker("worker-gpu-shared", "worker", SHARED_WORKER, methods, "gpu-shared"), _GPU_LIMITS]
    return "".join([*parts, _names(list(users))])


def _worker(service: str, process: str, user: str, methods: Sequence[_Method], profile: str) -> str:
    # Writable models for a trainer; the others read them. Each waits for what it calls, so that it ends before that.
    needs = ["gateway", *(f"{method.name}-api" for method in methods)]
    return _WORKER.format(
        service=service,
        profile=profile,
        process=process,
        places=_places(methods),
        user=user,
        models="*models" if process == "trainer" else "*models-only-read",
        needs=", ".join(f"{name}: {{condition: service_healthy}}" for name in needs),
    )


def _places(methods: Sequence[_Method]) -> str:
    return "".join(f', --service, "{method.place}"' for method in methods)


def _names(users: Sequence[str]) -> str:
    secrets = ["internal_secret", "api_key_pepper", "kek.json", "custody_url", "broker.acl", "custody.acl"]
    secrets += [f"broker_url.{user}" for user in (GATEWAY, *users)]
    lines = ["", "networks:", "  public: {}"]
    lines += [f"  {network}: {{internal: true}}" for network in ("custody", *users)]
    lines += ["", "secrets:"]
    lines += [f"  {secret}: {{file: ./.containers/secrets/{secret}}}" for secret in secrets]
    return "\n".join(lines) + "\n"
