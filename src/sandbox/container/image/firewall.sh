#!/bin/sh
# firewall.sh <bridge> agents|relay [<port>]: adds the firewall rules, unless they exist, that keep the containers of a
# bridge from this host and from the metadata services of clouds, and bound the new connections of agents. Runs in the
# host's network. With a port, the containers of the bridge reach each other on it, but no agent reaches another one.
# Prints a line for each rule that it has added.
set -e
bridge=$1
of=$2
port=$3

rule() {
  table=$1
  chain=$2
  shift 2
  iptables -w 5 -t "$table" -C "$chain" "$@" 2>/dev/null && return
  iptables -w 5 -t "$table" -I "$chain" "$@"
  echo "added to $table $chain"
}

# Before the translation of addresses, so that published ports of other containers count as the host's too.
rule mangle PREROUTING -i "$bridge" -m addrtype --dst-type LOCAL -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP
# Broadcast and multicast have no local address.
rule mangle INPUT -i "$bridge" -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP
# The metadata services of most clouds, of Alibaba and of Azure. UDP is allowed: some have their name servers there.
for address in 169.254.0.0/16 100.100.100.200/32 168.63.129.16/32; do
  rule mangle PREROUTING -i "$bridge" -d "$address" ! -p udp -j DROP
done
if [ "$of" = agents ]; then
  # The host keeps a closed connection in its table for two minutes, and a full table stops everybody. An install of
  # packages opens some dozens. With a port the control plane is on the bridge too, and connects to many agents; an agent
  # connects to the relay alone, which bounds the connections that it holds.
  by=srcip
  [ -z "$port" ] || by=srcip,dstip
  rate="--hashlimit-above 50/second --hashlimit-burst 500 --hashlimit-mode $by --hashlimit-name $bridge"
  # Before a connection is tracked, and before the relay is accepted.
  rule raw PREROUTING -i "$bridge" -p tcp --syn -m hashlimit $rate -j DROP
  rule mangle PREROUTING -i "$bridge" ! -p tcp -m conntrack --ctstate NEW -m hashlimit $rate-other -j DROP
  [ -n "$port" ] || rule mangle PREROUTING -i "$bridge" -p tcp --syn -m connlimit --connlimit-above 512 -j DROP
fi
if [ -n "$port" ]; then
  rule filter DOCKER-USER -i "$bridge" -o "$bridge" -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
  rule filter DOCKER-USER -i "$bridge" -o "$bridge" -p tcp --dport "$port" -j ACCEPT
  # The hardware addresses of agents begin so, and no agent can change its own.
  agents=c6:9e:00:00:00:00/ff:ff:00:00:00:00
  if ! ebtables -L FORWARD | grep -q c6:9e:; then
    ebtables -I FORWARD -s "$agents" -d "$agents" -j DROP
    echo "added to bridge FORWARD"
  fi
fi
