package main

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"kiln.build/runner/container"
)

// inspected is a container in the form of docker inspect, as far as there is
// something to tell.
type inspected struct {
	ID           string `json:"Id"`
	Created      time.Time
	Path         string
	Args         []string
	State        inspectedState
	Image        string
	Name         string
	LogPath      string
	RestartCount int
	Config       inspectedConfig
	HostConfig   inspectedHost
	Network      inspectedNetwork `json:"NetworkSettings"`
}

type inspectedState struct {
	Status     string
	Running    bool
	OOMKilled  bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
}

type inspectedConfig struct {
	Hostname   string
	User       string
	Tty        bool
	OpenStdin  bool
	Env        []string
	Cmd        []string
	Image      string
	WorkingDir string
	Labels     map[string]string
	StopSignal string `json:",omitempty"`
}

type inspectedHost struct {
	NetworkMode    string
	AutoRemove     bool
	Privileged     bool
	ReadonlyRootfs bool
	CapAdd         []string
	CapDrop        []string
	Memory         int64
	Binds          []string
}

type inspectedNetwork struct {
	IPAddress string
	Ports     map[string][]inspectedPort
}

type inspectedPort struct {
	HostIP   string `json:"HostIp"`
	HostPort int
}

// containerInspect returns all about a container, and whether there is one of
// that name.
func (a *app) containerInspect(_ context.Context, name string) (any, bool, error) {
	set, err := a.containers()
	if err != nil {
		return nil, false, err
	}
	k, err := set.Find(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	st, err := k.State()
	if err != nil {
		return nil, false, err
	}
	return inspect(k, st), true, nil
}

func inspect(k *container.Container, st container.State) inspected {
	x := inspected{
		ID: k.ID, Created: k.Created, Path: k.Args[0], Args: k.Args[1:], Image: string(k.ImageID), Name: "/" + k.Name,
		LogPath: k.LogPath(),
		State: inspectedState{
			Status: string(st.Status), Running: st.Status == container.Running, OOMKilled: st.OOM, Pid: st.PID,
			ExitCode: st.ExitCode, Error: st.Error, StartedAt: st.Started, FinishedAt: st.Finished,
		},
		Config: inspectedConfig{
			Hostname: k.Hostname, User: k.User, Tty: k.Terminal, OpenStdin: k.Config.Stdin, Env: k.Env, Cmd: k.Args,
			Image: k.Image, WorkingDir: k.Cwd, Labels: k.Labels, StopSignal: k.StopSignal,
		},
		HostConfig: inspectedHost{
			NetworkMode: k.Network, AutoRemove: k.AutoRemove, Privileged: k.Privileged, ReadonlyRootfs: k.ReadOnly,
			CapAdd: k.CapAdd, CapDrop: k.CapDrop, Memory: k.Limits.Memory,
		},
		Network: inspectedNetwork{IPAddress: st.IP, Ports: map[string][]inspectedPort{}},
	}
	for _, b := range k.Binds {
		x.HostConfig.Binds = append(x.HostConfig.Binds, b.Source+":"+b.Target)
	}
	for _, p := range st.Ports {
		at := p.ContainerPort()
		x.Network.Ports[at] = append(x.Network.Ports[at], inspectedPort{p.HostIP, p.HostPort})
	}
	return x
}
