package solver

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// A Graph tells how a graph of vertices was evaluated.
type Graph struct {
	// Evaluations are the distinct definitions, each after all it depends
	// on.
	Evaluations []*Evaluation

	Targets []*Evaluation // in the order in which they were given
}

// An Evaluation is what became of one definition: of all the vertices that
// are equal. While the graph is being solved only what another one depends
// on may be read on its behalf.
type Evaluation struct {
	Vertex *Vertex // the first of the equal ones that has a name
	Op     string  // the op's description

	// Of the vertex's fields of these names.
	Inputs, Using []*Evaluation
	Below         *Evaluation

	Key     digest.Digest // "" where an input failed or is not known
	Output  Output        // where State is Hit or Ran
	State   State
	unknown bool   // what lies below the result is not known
	Reason  string // why it ran or would run, from Solver.Why

	Started, Ended time.Time // of the Runner's work, zero where it had none
}

// State is how an evaluation ended.
type State int

// The states of an evaluation.
const (
	Waiting  State = iota // it was not come to
	Hit                   // the cache had its result, or it was made for an equal key
	Ran                   // the Runner made its result
	Broken                // the Runner failed
	Stopped               // the Runner was stopped since another one failed
	WouldRun              // a dry run came to what it does not do, or needs such output
)

func (s State) String() string {
	return [...]string{"waiting", "hit", "ran", "failed", "stopped", "would run"}[s]
}

// Known reports whether the evaluation has an output. In a dry run the one of
// a hit is not known if what lies below it is not.
func (e *Evaluation) Known() bool {
	return (e.State == Hit || e.State == Ran) && !e.unknown
}

// Named reports whether people are shown it.
func (e *Evaluation) Named() bool { return e.Vertex.Step != nil && e.Vertex.Step.Name != "" }

// Duration is the time the Runner took.
func (e *Evaluation) Duration() time.Duration { return e.Ended.Sub(e.Started) }

// A Looker is an op that only looks at what is there and is quick: also a dry
// run performs it.
type Looker interface{ Looks() }

func known(all ...*Evaluation) bool {
	for _, e := range all {
		if !e.Known() {
			return false
		}
	}
	return true
}

// canLook reports whether a dry run may perform a vertex.
func canLook(e *Evaluation) bool {
	_, looks := e.Vertex.Op.(Looker)
	return looks && known(e.Using...) && (e.Below == nil || e.Below.Known())
}
