package main

import (
	"cmp"

	"kiln.build/frontend"
	"kiln.build/frontend/dockerfile"
	"kiln.build/solver"
)

// The JSON of docker buildx build --call=NAME,format=json: the keys are those
// of BuildKit's subrequests, and the Dockerfile goes along, in base64.

type jsonLocation struct {
	Ranges []jsonRange `json:"ranges,omitempty"`
}

type jsonRange struct {
	Start jsonPosition `json:"start"`
	End   jsonPosition `json:"end"`
}

type jsonPosition struct {
	Line int `json:"line,omitempty"`
}

// locationJSON has a range for each line, as BuildKit's has.
func locationJSON(loc solver.Location) *jsonLocation {
	l := &jsonLocation{}
	for n := loc.Start; n > 0 && n <= max(loc.Start, loc.End); n++ {
		l.Ranges = append(l.Ranges, jsonRange{jsonPosition{n}, jsonPosition{n}})
	}
	return l
}

type jsonWarning struct {
	Rule        string        `json:"ruleName"`
	Description string        `json:"description,omitempty"`
	URL         string        `json:"url,omitempty"`
	Detail      string        `json:"detail,omitempty"`
	Location    *jsonLocation `json:"location,omitempty"`
}

type jsonSource struct {
	Name     string `json:"filename,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Language string `json:"language,omitempty"`
}

type jsonError struct {
	Message  string        `json:"message"`
	Location *jsonLocation `json:"location"`
}

type jsonCheck struct {
	Warnings []jsonWarning `json:"warnings"`
	Sources  []jsonSource  `json:"sources"`
	Error    *jsonError    `json:"buildError,omitempty"`
}

func checkJSON(name string, source []byte, warnings []frontend.Warning, err error) jsonCheck {
	c := jsonCheck{Sources: []jsonSource{{Name: name, Data: source, Language: "Dockerfile"}}}
	for _, w := range warnings {
		c.Warnings = append(c.Warnings, jsonWarning{
			Rule: cmp.Or(w.Rule, unusedBuildArg), Description: w.Detail, URL: w.URL, Detail: w.Text, Location: locationJSON(w.Location),
		})
	}
	if err != nil {
		at, message := placed(err)
		c.Error = &jsonError{Message: message, Location: locationJSON(at)}
	}
	return c
}

type jsonArg struct {
	Name        string        `json:"name"`
	Description string        `json:"description,omitempty"`
	Value       string        `json:"value,omitempty"`
	Location    *jsonLocation `json:"location,omitempty"`
}

type jsonMount struct {
	Name     string        `json:"name"`
	Required bool          `json:"required,omitempty"`
	Location *jsonLocation `json:"location,omitempty"`
}

type jsonCache struct {
	ID       string        `json:"ID"`
	Location *jsonLocation `json:"location,omitempty"`
}

type jsonOutline struct {
	Name        string      `json:"name,omitempty"`
	Description string      `json:"description,omitempty"`
	Args        []jsonArg   `json:"args,omitempty"`
	Secrets     []jsonMount `json:"secrets,omitempty"`
	SSH         []jsonMount `json:"ssh,omitempty"`
	Cache       []jsonCache `json:"cache,omitempty"`
	Sources     [][]byte    `json:"sources,omitempty"`
}

func outlineJSON(o *dockerfile.Outline, source []byte) jsonOutline {
	j := jsonOutline{Name: o.Name, Description: o.Description, Sources: [][]byte{source}}
	for _, a := range o.Args {
		j.Args = append(j.Args, jsonArg{a.Name, a.Description, a.Value, locationJSON(a.Location)})
	}
	for _, m := range o.Secrets {
		j.Secrets = append(j.Secrets, jsonMount{m.ID, m.Required, locationJSON(m.Location)})
	}
	for _, m := range o.SSH {
		j.SSH = append(j.SSH, jsonMount{m.ID, m.Required, locationJSON(m.Location)})
	}
	for _, m := range o.Caches {
		j.Cache = append(j.Cache, jsonCache{m.ID, locationJSON(m.Location)})
	}
	return j
}

type jsonTarget struct {
	Name        string        `json:"name,omitempty"`
	Default     bool          `json:"default,omitempty"`
	Description string        `json:"description,omitempty"`
	Base        string        `json:"base,omitempty"`
	Platform    string        `json:"platform,omitempty"`
	Location    *jsonLocation `json:"location,omitempty"`
}

type jsonTargets struct {
	Targets []jsonTarget `json:"targets"`
	Sources [][]byte     `json:"sources"`
}

func targetsJSON(all []dockerfile.Target, source []byte) jsonTargets {
	j := jsonTargets{Sources: [][]byte{source}}
	for _, t := range all {
		j.Targets = append(j.Targets, jsonTarget{t.Name, t.Default, t.Description, t.Base, t.Platform, locationJSON(t.Location)})
	}
	return j
}
