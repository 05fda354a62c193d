"""Objects that the tests of the command line share, as YAML."""

from __future__ import annotations

__all__ = ["CONFIG", "DEPLOYMENT", "NODE", "SERVICE", "pod", "replica_set"]

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: host, command: [sleep, "60"]}]}
"""

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]}
"""

CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {colour: blue, size: "3"}
"""

NODE = """
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {node-role.kubernetes.io/worker: ""}}
status:
  conditions: [{type: Ready, status: "True"}]
  addresses: [{type: InternalIP, address: 127.0.0.1}]
  nodeInfo: {kubeletVersion: v0.1.0, osImage: Debian, kernelVersion: "6.1", containerRuntimeVersion: process://1}
"""


def pod(name: str, *, app: str = "web", node: str = "", namespace: str = "default", owner: str = "rs-uid") -> str:
    """A running pod. ``owner``: uid of the ReplicaSet that controls it; empty: a bare pod."""
    owners = f"[{{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: {owner}, controller: true}}]" if owner else "[]"
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}, ownerReferences: {owners}}}
spec:
  {f"nodeName: {node}" if node else "restartPolicy: Always"}
  containers: [{{name: main, image: host, command: [sleep, "60"]}}]
status:
  phase: Running
  podIP: 127.128.1.7
  containerStatuses:
    - {{name: main, image: host, imageID: host, ready: true, restartCount: 2, state: {{running: {{}}}}}}
"""


def replica_set(name: str, revision: int, image: str, owner_uid: str, *, cause: str = "") -> str:
    """A ReplicaSet of the Deployment ``web`` at one revision."""
    note = f", kubernetes.io/change-cause: {cause}" if cause else ""
    return f"""
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: {name}
  namespace: default
  annotations: {{deployment.kubernetes.io/revision: "{revision}"{note}}}
  ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: {owner_uid}, controller: true}}]
spec:
  replicas: 0
  selector: {{matchLabels: {{app: web, pod-template-hash: h{revision}}}}}
  template:
    metadata: {{labels: {{app: web, pod-template-hash: h{revision}}}}}
    spec: {{containers: [{{name: web, image: {image}, command: [sleep, "60"]}}]}}
"""
