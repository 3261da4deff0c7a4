package launch

import (
	"reflect"
	"testing"
)

// fill sets every field of v to something that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case reflect.String:
		v.SetString("text of " + v.Type().Name())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(-7)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(200)
	default:
		panic(v.Kind())
	}
}

// Every field arrives: one that the codec forgets would be a limit or a mask
// that is not set.
func TestConfigArrives(t *testing.T) {
	var c Config
	fill(reflect.ValueOf(&c).Elem())
	got, err := decodeConfig(c.Encode()[16:])
	if err != nil || !reflect.DeepEqual(*got, c) {
		t.Errorf("got %+v, error %v\nwant %+v", got, err, c)
	}
}

func TestMessageArrives(t *testing.T) {
	var m Message
	fill(reflect.ValueOf(&m).Elem())
	got, err := DecodeMessage(m.Encode())
	if err != nil || got != m {
		t.Errorf("got %+v, error %v; want %+v", got, err, m)
	}
}

func TestTruncated(t *testing.T) {
	var c Config
	fill(reflect.ValueOf(&c).Elem())
	b := c.Encode()[16:]
	for n := range b {
		if _, err := decodeConfig(b[:n]); err == nil {
			t.Fatalf("%d of %d bytes were accepted", n, len(b))
		}
	}
	if _, err := decodeConfig(append(b, 0)); err == nil {
		t.Error("a byte too many was accepted")
	}
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add(Message{Kind: KindError, Step: "s", Text: "t", Code: 126}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if err != nil {
			return
		}
		if again, err := DecodeMessage(m.Encode()); err != nil || again != m {
			t.Errorf("%x: %+v, then %+v, %v", b, m, again, err)
		}
	})
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add((&Config{Args: []string{"a"}}).Encode()[16:])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeConfig(b)
		if err != nil {
			return
		}
		if x := c.Encode()[16:]; len(x) != len(b) {
			t.Errorf("%d bytes, then %d", len(b), len(x))
		}
	})
}
