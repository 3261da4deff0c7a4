package solver

import "time"

// Kind says what an [Event] reports.
type Kind int

// The kinds of events. A vertex gives either Cached, or Started followed by
// any number of Logged, Progressed and Warned and at last Done or Failed.
// Several vertices of equal definition give the events of one of them.
const (
	Started    Kind = iota // the Runner is being called; Name is the reason, if known
	Cached                 // the result was in the cache
	Logged                 // Data was printed on Stream
	Progressed             // Name has come to Current of Total
	Warned                 // Name is the text
	Done                   // the Runner returned a result
	Failed                 // the Runner returned Err
	Canceled               // the Runner was stopped since another vertex failed
)

// An Event is one step in the life of a vertex.
type Event struct {
	Kind   Kind
	Time   time.Time
	Vertex *Vertex // with the Step, if any, of the first of equal vertices

	Stream         int
	Data           []byte
	Name           string
	Current, Total int64
	Err            error
}

// A Sink receives events as they happen. It is called from many goroutines
// and must return quickly.
type Sink interface {
	Event(Event)
}
