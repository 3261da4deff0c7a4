package runner

import (
	"fmt"
	"strings"

	"kiln.build/runner/cdi"
)

// devices gives the step the devices that it asks for.
func (x *execution) devices() error {
	if len(x.o.Devices) == 0 {
		return nil
	}
	registry, err := cdi.Read(x.r.CDIDirs)
	if err != nil {
		return err
	}
	var all []*cdi.Device
	for _, d := range x.o.Devices {
		found, err := registry.Find(d.Name)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			text := fmt.Sprintf("device %q is not registered in %s", d.Name, strings.Join(x.r.CDIDirs, " or "))
			if d.Required {
				return fmt.Errorf("required %s", text)
			}
			x.a.Warn(text)
		}
		all = append(all, found...)
	}
	edits := cdi.Combine(all)
	if hooks := edits.HookCommands(); len(hooks) > 0 {
		x.a.Warn("the hooks of the devices are not run in a build: " + strings.Join(hooks, "; "))
	}
	return edits.Apply(&x.spec)
}
