"""Fields that Kubernetes knows and that are stored, but not acted on here: an apply that sets one is warned. Data only.

Message → field → the value that asks for nothing (None: any value asks for something). Deleting a row is part of
implementing the field.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["IGNORED_FIELDS"]

_CORE: Final = "k8s.io.api.core.v1."

IGNORED_FIELDS: Final[dict[str, dict[str, Any]]] = {
    f"{_CORE}PodSpec": {
        "activeDeadlineSeconds": None,
        "automountServiceAccountToken": False,
        "dnsConfig": None,
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": False,
        "ephemeralContainers": None,
        "hostAliases": None,
        "hostIPC": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostUsers": True,
        "hostnameOverride": None,
        "imagePullSecrets": None,
        "os": {"name": "linux"},
        "preemptionPolicy": None,
        "priorityClassName": None,
        "resourceClaims": None,
        "runtimeClassName": None,
        "schedulingGroup": None,
        "securityContext": None,
        "serviceAccount": "default",
        "serviceAccountName": "default",
        "setHostnameAsFQDN": False,
        "shareProcessNamespace": False,
        "subdomain": None,
    },
    f"{_CORE}Container": {
        "resizePolicy": None,
        "restartPolicy": None,
        "restartPolicyRules": None,
        "securityContext": None,
        "stdin": False,
        "stdinOnce": False,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "tty": False,
        "volumeDevices": None,
    },
    f"{_CORE}ServiceSpec": {
        "allocateLoadBalancerNodePorts": None,
        "externalTrafficPolicy": "Cluster",
        "healthCheckNodePort": None,
        "internalTrafficPolicy": "Cluster",
        "loadBalancerClass": None,
        "loadBalancerIP": None,
        "loadBalancerSourceRanges": None,
        "trafficDistribution": None,
    },
    f"{_CORE}ServicePort": {"nodePort": None},
    f"{_CORE}Lifecycle": {"postStart": None},
    f"{_CORE}ProbeHandler": {"grpc": None},
    f"{_CORE}EnvFromSource": {"secretRef": None},
    f"{_CORE}EnvVarSource": {"fileKeyRef": None, "secretKeyRef": None},
    f"{_CORE}VolumeMount": {
        "bindMountOptions": None,
        "mountPropagation": None,
        "recursiveReadOnly": None,
        "subPathExpr": None,
    },
    f"{_CORE}VolumeSource": {"downwardAPI": None, "persistentVolumeClaim": None, "projected": None, "secret": None},
    f"{_CORE}NodeSpec": {"configSource": None, "externalID": None, "podPreemptionPolicy": None},
}
