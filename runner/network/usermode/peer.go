package usermode

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	// A peer that has not taken its frames after so many pauses loses one.
	peerTries = 20
	peerPause = 50 * time.Microsecond
)

// toPeer sends a frame to another container of the network, and reports
// whether there is one. The frame goes as it came, with what is left to do to
// it, so it is not cut before the other's kernel wants that.
func (l *link) toPeer(frame []byte) bool {
	if l.lease == nil {
		return false
	}
	to := netip.AddrFrom4([4]byte(frame[headSize+16:]))
	if !l.subnet.Contains(to) || to == l.gatewayIP || to == l.ip {
		return false
	}
	peer := &unix.SockaddrUnix{Name: l.lease.name(to)}
	for range peerTries {
		var err error
		if closed := l.peers.Control(func(fd uintptr) { err = unix.Sendto(int(fd), frame, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, peer) }); closed != nil {
			return true
		}
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			time.Sleep(peerPause)
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
			return false // the latter from the socket of a process that was killed
		default:
			return true
		}
	}
	return true // lost
}

// fromPeers hands frames of other containers on until the link is closed.
func (l *link) fromPeers() {
	frame := make([]byte, maxFrame)
	n := 0
	var errno error
	receive := func(fd uintptr) bool {
		for {
			n, errno = unix.Read(int(fd), frame)
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	}
	for {
		if l.peers.Read(receive) != nil {
			return // closed
		}
		if errno == nil {
			l.fromPeer(frame[:n])
		}
	}
}

// fromPeer takes one frame. Senders are processes of the same user and have
// looked at the source; this is against those that are mistaken.
func (l *link) fromPeer(frame []byte) {
	if len(frame) < headSize+header.IPv4MinimumSize || binary.BigEndian.Uint16(frame[headSize-2:]) != etherIPv4 {
		return
	}
	packet := frame[headSize:]
	from, to := netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
	if to != l.ip || !l.subnet.Contains(from) || from == l.gatewayIP || from == l.ip {
		return
	}
	copy(frame[vnetSize:], l.out[:])
	_ = l.write([][]byte{frame}) // what the kernel does not take is lost
}
