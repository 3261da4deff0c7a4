package container

import (
	"crypto/rand"
	"math/big"
	"regexp"
	"strings"
	"sync"
)

var validName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`) })

// The words of which names are made, as docker's are of an adjective and a
// surname: here of the potter's trade.
var (
	adjectives = strings.Fields("amber azure bold brisk calm clear cobalt crisp deft dusky earthen fine fired gentle glazed golden hardy keen lively mellow milky ochre plain polished quick quiet ruddy rustic sandy sleek smooth sober speckled steady sturdy sunny tawny thrown warm white")
	nouns      = strings.Fields("amphora basin beaker bisque bowl brick burner carafe celadon chimney clay crock cup damper dish ember ewer faience flame flask glaze goblet jar jug kettle ladle mug pitcher plate pot potter shard slip spout stoneware teapot tile tureen urn vase wheel")
)

// randomName makes a name; after the first tries a number follows, so that
// there is always one that is free.
func randomName(try int) string {
	name := pick(adjectives) + "_" + pick(nouns)
	if try >= 3 {
		n, _ := rand.Int(rand.Reader, big.NewInt(10_000)) // never fails (crypto/rand)
		name += n.String()
	}
	return name
}

func pick(words []string) string {
	n, _ := rand.Int(rand.Reader, big.NewInt(int64(len(words)))) // never fails
	return words[n.Int64()]
}
