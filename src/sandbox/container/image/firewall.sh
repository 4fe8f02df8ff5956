#!/bin/sh
# firewall.sh <bridge> [<port>]: adds the firewall rules, unless they exist, that keep the containers of a bridge from
# this host and from the metadata services of clouds. Runs in the host's network. With a port, the containers of the
# bridge reach each other on it. Prints a line for each rule that it has added.
set -e
bridge=$1
port=$2

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
if [ -n "$port" ]; then
  rule filter DOCKER-USER -i "$bridge" -o "$bridge" -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
  rule filter DOCKER-USER -i "$bridge" -o "$bridge" -p tcp --dport "$port" -j ACCEPT
fi
