#!/bin/bash
# kubernetes-cluster.sh <folder>: a Kubernetes of one node below the folder, on this machine, until it is ended. The file
# `ready` there says that it takes pods. Needs root and Debian. Its programs are built once, into
# /var/cache/chowder-kubernetes, from the source package of Debian 12: no later Debian has the server.
set -euo pipefail
W=$1
cache=/var/cache/chowder-kubernetes

install_packages() {
  local missing=()
  for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
  [ ${#missing[@]} -eq 0 ] || DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

# Kubernetes 1.20.2 as it is in Debian 12, without the clouds. Of its generated code one file is not in the package.
build() {
  local work=$cache/work
  export GO111MODULE=off GOFLAGS= GOTOOLCHAIN=local CGO_ENABLED=0 GOPATH=$work/go GOCACHE=$work/gocache
  install_packages golang-go dpkg-dev
  mkdir -p "$work"/apt/{lists/partial,cache/archives/partial} "$work/source" "$GOPATH/src/k8s.io"
  echo 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main' \
    >"$work/apt/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache")
  apt-get "${options[@]}" update
  (cd "$work/source" && apt-get "${options[@]}" source --download-only kubernetes && tar xzf kubernetes_*.orig.tar.gz)
  mv "$work"/source/kubernetes-*/ "$GOPATH/src/k8s.io/kubernetes"
  cd "$GOPATH/src/k8s.io/kubernetes"
  go build -o "$GOPATH/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  local folders
  folders=$(grep -rl --include=*.go '+k8s:openapi-gen=' pkg staging/src/k8s.io cmd plugin |
    grep -v -e /vendor/ -e _test.go -e code-generator -e sample- | xargs -n1 dirname | sort -u |
    sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e 's#^\(pkg\|cmd\|plugin\)/#k8s.io/kubernetes/\1/#' | paste -sd,)
  "$GOPATH/openapi-gen" --logtostderr -i "$folders" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations" --output-base "$GOPATH/src"
  for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
    go build -tags providerless -ldflags '-s -w' -o "$cache/$program.part" "./cmd/$program"
    mv "$cache/$program.part" "$cache/$program"
  done
  # The first process of each pod.
  cat >"$work/pause.go" <<'END'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for pid := 1; pid > 0; {
			pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		}
	}
}
END
  go build -ldflags '-s -w' -o "$cache/pause" "$work/pause.go"
  cd / && chmod -R u+w "$work" && rm -rf "$work"
}

# The address of this machine in the network of pods, and that of the API as a Service.
host=10.88.77.1
service=10.123.0.1

# forward -I|-D: lets pods through, past what a Docker Engine of this machine has forbidden. By their addresses: tests of
# Docker remove rules that name a bridge of Chowder.
forward() {
  for way in -s -d; do iptables -w 5 "$1" FORWARD "$way" 10.88.77.0/24 -j ACCEPT; done
}

pids=()
end() {
  trap - EXIT INT TERM
  kill "${pids[@]}" 2>/dev/null || :
  sleep 1
  pkill -f -- "--root-dir=$W/kubelet" || :
  # Pods outlive their containerd.
  for pid in $(pgrep -f -- "-address $W/run/c.sock" || :); do
    pkill -KILL -P "$pid" || :
    kill -KILL "$pid" 2>/dev/null || :
  done
  kill -KILL "${pids[@]}" 2>/dev/null || :
  # The kubelet and kube-proxy have set others.
  [ ! -e "$W/sysctls" ] || xargs -a "$W/sysctls" -n1 sysctl -q -w || :
  grep " $W/" /proc/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount -l || :
  "$cache/kube-proxy" --cleanup >/dev/null 2>&1 || :
  forward -D 2>/dev/null || :
  ip link del chowder-k8s 2>/dev/null || :
}
trap end EXIT
trap 'exit 0' INT TERM

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
install_packages etcd-server containerd runc containernetworking-plugins kubectl openssl iptables
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy pause; do
  [ -x "$cache/$program" ] || {
    build >&2
    break
  }
done

mkdir -p "$W"/{log,etcd,containerd,run,kubelet,cni,volumes,pki}
cd "$W/pki"
{
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test -keyout ca.key -out ca.crt
  openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout api.key -out api.csr
  openssl x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out api.crt \
    -extfile <(echo "subjectAltName=DNS:kubernetes.default.svc,IP:$host,IP:$service")
  openssl genrsa -out sa.key 2048
} 2>/dev/null
for user in admin chowder; do
  token=$(openssl rand -hex 16)
  echo "$token,$user,$user,$([ $user = chowder ] || echo system:masters)" >>tokens.csv
  cat >"$W/$user.conf" <<END
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://$host:16443", certificate-authority: $W/pki/ca.crt}}]
users: [{name: $user, user: {token: $token}}]
contexts: [{name: test, context: {cluster: test, user: $user, namespace: agents}}]
current-context: test
END
done

# start <name> <program> [<argument> ...]
start() {
  local name=$1
  shift
  "$@" >"$W/log/$name" 2>&1 9>&- &
  pids+=($!)
}

# keep_running <file> <program> [<argument> ...]: starts it again when it has ended, but not while there is the file.
keep_running() {
  local held=$1
  shift
  while :; do
    "$@" || :
    sleep 1
    while [ -e "$held" ]; do sleep 0.2; done
  done
}

# until_true <what> <command> ...
until_true() {
  local what=$1
  shift
  for _ in $(seq 180); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 1
  done
  echo "$what does not come up:" >&2
  tail -n 5 "$W"/log/* >&2
  exit 1
}

# Pods reach the API at an address of theirs. A cluster that was killed has left the bridge.
ip link del chowder-k8s 2>/dev/null || :
ip link add chowder-k8s type bridge
ip addr add "$host/24" dev chowder-k8s
ip link set chowder-k8s up
forward -I

export KUBECONFIG=$W/admin.conf
start etcd etcd --data-dir "$W/etcd" --unsafe-no-fsync --listen-peer-urls http://127.0.0.1:12380 \
  --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379
start apiserver "$cache/kube-apiserver" --etcd-servers=http://127.0.0.1:12379 --bind-address="$host" \
  --secure-port=16443 --insecure-port=0 --tls-cert-file=api.crt --tls-private-key-file=api.key \
  --token-auth-file=tokens.csv --authorization-mode=Node,RBAC \
  --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file=sa.key \
  --service-account-key-file=sa.key --advertise-address="$host" \
  --kubelet-preferred-address-types=Hostname --service-cluster-ip-range=10.123.0.0/24
cat >"$W/containerd.toml" <<END
version = 2
root = "$W/containerd"
state = "$W/run/state"
[grpc]
  address = "$W/run/c.sock"
[ttrpc]
  address = "$W/run/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "chowder.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$W/cni"
END
cat >"$W/cni/10.conflist" <<END
{"cniVersion": "0.4.0", "name": "chowder-k8s", "plugins": [
  {"type": "bridge", "bridge": "chowder-k8s", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local",
    "dataDir": "$W/cni-state", "ranges": [[{"subnet": "10.88.77.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
start containerd containerd --config "$W/containerd.toml"
until_true 'the API' kubectl get --raw /readyz
start controllers "$cache/kube-controller-manager" --kubeconfig="$KUBECONFIG" --leader-elect=false --port=0 \
  --secure-port=0 --service-account-private-key-file=sa.key --root-ca-file=ca.crt
start scheduler "$cache/kube-scheduler" --kubeconfig="$KUBECONFIG" --leader-elect=false --port=0 --secure-port=0
cat >"$W/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: 16250
healthzPort: 0
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
podPidsLimit: 512
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
resolvConf: ""
clusterDomain: cluster.local
clusterDNS: [$host]
END
sysctl -e vm.overcommit_memory kernel.panic kernel.panic_on_oops net.ipv4.conf.all.route_localnet | tr -d ' ' >"$W/sysctls"
start kubelet keep_running "$W/kubelet-held" "$cache/kubelet" --config="$W/kubelet.yaml" --kubeconfig="$KUBECONFIG" --root-dir="$W/kubelet" \
  --cert-dir="$W/kubelet/pki" --hostname-override=localhost --container-runtime=remote \
  --container-runtime-endpoint="unix://$W/run/c.sock" --image-service-endpoint="unix://$W/run/c.sock"
# With the addresses of pods hidden: pods on one bridge would answer each other past what leads to a Service.
start proxy "$cache/kube-proxy" --kubeconfig="$KUBECONFIG" --hostname-override=localhost --proxy-mode=iptables \
  --cluster-cidr=10.88.77.0/24 --masquerade-all --conntrack-max-per-core=0 --conntrack-min=0 \
  --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
  --metrics-bind-address=127.0.0.1:16249 --healthz-bind-address=127.0.0.1:16256
until_true 'the node' sh -c 'kubectl get node localhost | grep -q " Ready"'
touch "$W/ready"
while kill -0 "${pids[0]}" 2>/dev/null; do sleep 1; done
