// What terraform's libvirt provider asks of a server, in its order, through the library that it stands on.
//
//	terraform_calls SOCKET POOL NETWORK
//
// Each step prints a line; the first that fails ends the program with 1 and its reason.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

const size = 3<<20 + 12345 // bytes: several packets of the library's, and a part of one

func must(step string, err error) {
	if err != nil {
		fmt.Printf("%s: %v\n", step, err)
		os.Exit(1)
	}
	fmt.Println(step)
}

func mustBe(step string, holds bool, found interface{}) {
	if !holds {
		must(step, fmt.Errorf("found %v", found))
	}
	fmt.Println(step)
}

func domainXML(uuid string, memory int, volume string, network string) string {
	return fmt.Sprintf(`<domain type="kvm"><name>terraform</name>%s<memory unit="MiB">%d</memory><vcpu>1</vcpu>
<os><type>hvm</type><boot dev="hd"/><boot dev="network"/></os>
<devices><disk type="volume" device="disk"><driver name="qemu" type="raw"/>
<source pool="%s" volume="terraform.raw"/><target dev="vda" bus="virtio"/><wwn>05abcd0123456789</wwn></disk>
<interface type="network"><source network="%s"/></interface>
<console type="pty"><target type="serial" port="0"/></console></devices></domain>`, uuid, memory, volume, network)
}

func main() {
	path, poolName, networkName := os.Args[1], os.Args[2], os.Args[3]
	server := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(path)))
	must("connect", server.ConnectToURI(libvirt.QEMUSystem))
	version, err := server.ConnectGetLibVersion()
	must("version", err)
	mustBe("new enough", version >= 10000000, version)
	_, err = server.ConnectGetCapabilities()
	must("capabilities", err)

	pool, err := server.StoragePoolLookupByName(poolName)
	must("pool", err)
	must("refresh", server.StoragePoolRefresh(pool, 0))
	volume, err := server.StorageVolCreateXML(pool, fmt.Sprintf(`<volume><name>terraform.raw</name>
<capacity unit="bytes">%d</capacity><target><format type="raw"/></target></volume>`, size), 0)
	must("volume", err)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i>>8) ^ byte(i)
	}
	must("upload", server.StorageVolUpload(volume, bytes.NewReader(content), 0, size, 0))
	var back bytes.Buffer
	must("download", server.StorageVolDownload(volume, &back, 0, size, 0))
	mustBe("the same", bytes.Equal(back.Bytes(), content), back.Len())

	network, err := server.NetworkLookupByName(networkName)
	must("network", err)
	_, err = server.NetworkGetXMLDesc(network, 0)
	must("its document", err)

	following, stop := context.WithCancel(context.Background())
	defer stop()
	events, err := server.LifecycleEvents(following)
	must("events", err)
	seen := func(wanted libvirt.DomainEventType) {
		deadline := time.After(30 * time.Second)
		for {
			select {
			case event := <-events:
				if libvirt.DomainEventType(event.Event) == wanted {
					fmt.Printf("event %d\n", wanted)
					return
				}
			case <-deadline:
				must(fmt.Sprintf("event %d", wanted), fmt.Errorf("not seen within 30 s"))
			}
		}
	}

	domain, err := server.DomainDefineXML(domainXML("", 512, poolName, networkName))
	must("define", err)
	must("autostart", server.DomainSetAutostart(domain, 1))
	must("start", server.DomainCreate(domain))
	seen(libvirt.DomainEventStarted)
	state, _, err := server.DomainGetState(domain, 0)
	must("state", err)
	mustBe("running", libvirt.DomainState(state) == libvirt.DomainRunning, state)
	shown, err := server.DomainGetXMLDesc(domain, 0)
	must("document", err)
	mustBe("with what was defined", strings.Contains(shown, "05abcd0123456789"), shown)
	_, err = server.DomainInterfaceAddresses(domain, 0, 0)
	must("addresses", err)
	must("destroy", server.DomainDestroy(domain))
	seen(libvirt.DomainEventStopped)

	uuid := fmt.Sprintf("<uuid>%x</uuid>", domain.UUID)
	again, err := server.DomainDefineXML(domainXML(uuid, 256, poolName, networkName))
	must("update", err)
	mustBe("the same domain", again.UUID == domain.UUID, again)
	must("undefine", server.DomainUndefineFlags(domain, libvirt.DomainUndefineNvram))
	_, err = server.DomainLookupByUUID(domain.UUID)
	mustBe("gone", libvirt.IsNotFound(err), err)
	must("delete", server.StorageVolDelete(volume, 0))
	must("leave", server.Disconnect())
}
