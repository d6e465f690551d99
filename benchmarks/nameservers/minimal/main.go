// The least that is a DNS server on miekg/dns, the library under CoreDNS and Consul: a map, and no feature.
//
//	minimal PORT SERVICES INSTANCES
//
// It knows service-00000.service.consul and so on; instance k of service n is 10.k.(n/256).(n%256).
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/miekg/dns"
)

func number(at int) int {
	n, err := strconv.Atoi(os.Args[at])
	if err != nil {
		log.Fatal(err)
	}
	return n
}

func main() {
	services, instances := number(2), number(3)
	addresses := make(map[string][]net.IP, services)
	for n := 0; n < services; n++ {
		var all []net.IP
		for k := 0; k < instances; k++ {
			all = append(all, net.IPv4(10, byte(k), byte(n>>8), byte(n)))
		}
		addresses[fmt.Sprintf("service-%05d.service.consul.", n)] = all
	}
	var turn atomic.Uint64
	handler := func(w dns.ResponseWriter, request *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(request)
		reply.Authoritative = true
		reply.Compress = true
		if opt := request.IsEdns0(); opt != nil {
			reply.SetEdns0(1232, false)
		}
		question := request.Question[0]
		all := addresses[dns.CanonicalName(question.Name)]
		first := int(turn.Add(1))
		for k := range all {
			address := all[(first+k)%len(all)]
			head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET}
			if question.Qtype == dns.TypeA {
				reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: address})
				continue
			}
			four := address.To4()
			target := fmt.Sprintf("%02x%02x%02x%02x.addr.dc1.consul.", four[0], four[1], four[2], four[3])
			reply.Answer = append(reply.Answer, &dns.SRV{Hdr: head, Priority: 1, Weight: 1, Port: 8000, Target: target})
			extra := dns.RR_Header{Name: target, Rrtype: dns.TypeA, Class: dns.ClassINET}
			reply.Extra = append(reply.Extra, &dns.A{Hdr: extra, A: address})
		}
		w.WriteMsg(reply)
	}
	server := &dns.Server{Addr: "127.0.0.1:" + os.Args[1], Net: "udp", Handler: dns.HandlerFunc(handler)}
	log.Fatal(server.ListenAndServe())
}
