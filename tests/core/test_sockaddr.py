"""go-sockaddr templates: those that Consul's documentation and users show, on a made-up machine."""

from ipaddress import ip_interface

import pytest

from meshgate.core.sockaddr import Interface, TemplateError, evaluate, is_template


def at(name: str, address: str, **flags: bool) -> Interface:
    return Interface(name, ip_interface(address), **({"broadcast": True, "multicast": True} | flags))


MACHINE = (
    at("lo", "127.0.0.1/8", loopback=True, broadcast=False, multicast=False),
    at("lo", "::1/128", loopback=True, broadcast=False, multicast=False),
    at("eth0", "10.0.0.10/24", default=True),
    at("eth0", "fe80::1/64", default=True),
    at("eth0", "fd00::10/64", default=True),
    at("eth1", "192.168.1.10/24"),
    at("eth1", "172.16.5.5/16"),
    at("eth2", "45.33.32.156/24"),
    at("eth3", "10.9.0.1/24", up=False),
    at("tun0", "100.64.0.7/32", broadcast=False, multicast=False, point_to_point=True),
)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        # As Consul's documentation of bind_addr shows them.
        ("{{ GetPrivateIP }}", "10.0.0.10"),
        ("{{GetPrivateIP}}:8443", "10.0.0.10:8443"),
        ('{{ GetPrivateInterfaces | include "network" "10.0.0.0/8" | attr "address" }}', "10.0.0.10"),
        ('{{ GetInterfaceIP "eth0" }}', "10.0.0.10"),
        (
            '{{ GetAllInterfaces | include "name" "^eth" | include "flags" "forwardable|up" | attr "address" }}',
            "10.0.0.10",
        ),
        # As users write them.
        ("{{ GetPublicIP }}:443", "45.33.32.156:443"),
        ("wan={{ GetPublicIP }}:443,lan={{ GetPrivateIP }}:8443", "wan=45.33.32.156:443,lan=10.0.0.10:8443"),
        ('{{ GetInterfaceIP "eth1" }}', "172.16.5.5"),
        ("{{ GetInterfaceIP `^eth1$` }}", "172.16.5.5"),
        (r'{{ GetInterfaceIP "^eth\\d$" }}', "172.16.5.5"),
        ('{{ GetPrivateInterfaces | exclude "name" "eth0" | attr "address" }}', "172.16.5.5"),
        (
            '{{ GetPrivateInterfaces | exclude "type" "IPv6" | sort "-address" | limit 1 | attr "address" }}',
            "192.168.1.10",
        ),
        ('{{ GetPrivateInterfaces | include "type" "ipv6" | attr "address" }}', "fd00::10"),
        ('{{ GetDefaultInterfaces | include "type" "ipv4" | attr "address" }}', "10.0.0.10"),
        ('{{ GetAllInterfaces | include "flags" "loopback" | include "type" "ip" | attr "address" }}', "127.0.0.1"),
        ('{{ GetAllInterfaces | include "flag" "point-to-point|up" | attr "address" }}', "100.64.0.7"),
        ('{{ GetAllInterfaces | include "rfc" "1918|6598" | sort "name,size" | attr "address" }}', "10.0.0.10"),
        ('{{ GetAllInterfaces | exclude "rfcs" "6890" | attr "address" }}', "45.33.32.156"),
        ('{{ GetAllInterfaces | include "size" "16" | attr "address" }}', "172.16.5.5"),
        ('{{ GetAllInterfaces | include "address" "^192[.]" | attr "address" }}', "192.168.1.10"),
        ('{{ GetAllInterfaces | include "network" "172.16.0.0/12|45.33.0.0/16" | offset -1 }}', "45.33.32.156"),
        ('{{ GetAllInterfaces | exclude "flags" "up" | attr "address" }}', "10.9.0.1"),
        ('{{ GetAllInterfaces | include "flags" "forwardable" | sort "+private,default,type" }}', "10.0.0.10"),
        ('{{ GetAllInterfaces | sort "-private,address" | attr "address" }}', "45.33.32.156"),
        ("10.0.0.7:8443", "10.0.0.7:8443"),
    ],
)
def test_found(template: str, found: str) -> None:
    assert evaluate(template, MACHINE) == found


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ GetPublicIPs }}", "a template that begins with GetPublicIPs is not supported here, only GetInterfaceIP"),
        ('{{ GetPrivateIP "eth0" }}', 'a template that begins with GetPrivateIP "eth0" is not supported'),
        ("{{ GetInterfaceIP }}", "a template that begins with GetInterfaceIP is not supported"),
        ('{{ GetInterfaceIP "[" }}', "'\\[' is no regular expression"),
        ('{{ GetInterfaceIP "wlan0" }}', 'GetInterfaceIP "wlan0" }} finds no address on this machine'),
        (
            '{{ GetAllInterfaces | math "address" "+1" }}',
            'math "address" "\\+1" is not supported here; known are include',
        ),
        ('{{ GetAllInterfaces | join "address" " " }}', 'join "address" " " is not supported'),
        ('{{ GetAllInterfaces | attr "name" }}', 'attr "name" is not supported'),
        ('{{ GetAllInterfaces | attr "address" | limit 1 }}', "nothing can follow attr"),
        ('{{ GetAllInterfaces | sort "port" }}', 'sort "port" is not supported'),
        ('{{ GetAllInterfaces | limit "many" }}', 'limit "many" is not supported'),
        ('{{ GetAllInterfaces | limit "²" }}', 'limit "²" is not supported'),
        ('{{ GetAllInterfaces | offset "-" }}', 'offset "-" is not supported'),
        ('{{ GetAllInterfaces | offset "--1" }}', 'offset "--1" is not supported'),
        (
            '{{ GetAllInterfaces | include "port" "1" }}',
            "selectors are name, address, network, type, rfc, size and flags",
        ),
        ('{{ GetAllInterfaces | include "type" "unix" }}', "'unix' is none of ip, ipv4, ipv6"),
        ('{{ GetAllInterfaces | include "flags" "odd" }}', "'odd' is none of up, loopback"),
        ('{{ GetAllInterfaces | include "rfc" "1" }}', "'1' is none of 1918"),
        ('{{ GetAllInterfaces | include "network" "x" }}', "'x' does not appear to be an IPv4 or IPv6 network"),
        ('{{ GetAllInterfaces | include "name" "[" }}', 'include "name" "\\["'),
        ("{{ }}", "is not understood at its end"),
        ("{{ GetAllInterfaces | }}", "is not understood at its end"),
        ("{{ GetAllInterfaces limit }}", "is not understood at limit"),
        ('{{ "eth0" }}', 'is not understood at "eth0"'),
        ("{{ . }}", "is not understood at \\."),
        ("{{ GetAllInterfaces || limit 1 }}", "is not understood at \\|"),
        ("{{ GetPrivateIP", "a template has {{ in front and }} behind it"),
        ("{{ GetPrivateIP }} }}", "a template has {{ in front"),
    ],
)
def test_what_is_not_understood_or_not_found_is_told_in_one_line(template: str, complaint: str) -> None:
    with pytest.raises(TemplateError, match=complaint) as error:
        evaluate(template, MACHINE)
    assert "\n" not in str(error.value)


def test_what_is_a_template() -> None:
    assert is_template("{{ GetPrivateIP }}:8443")
    assert not is_template("10.0.0.7:8443")
