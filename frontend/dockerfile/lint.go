package dockerfile

import (
	"regexp"
	"strings"

	"github.com/moby/buildkit/util/suggest"
)

// Names that give a secret away, and those that make them harmless: the
// words that BuildKit's check SecretsUsedInArgOrEnv documents.
var (
	secretWords = regexp.MustCompile(`(?i)(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)`)
	publicWords = regexp.MustCompile(`(?i)(?:_|^)(?:public|file|version)(?:_|$)`)
)

func secretName(name string) bool {
	return secretWords.MatchString(name) && !publicWords.MatchString(name)
}

// didYouMeanName is the nearest of some names, or empty.
func didYouMeanName(name string, options []string) string {
	if near, ok := suggest.Search(name, options, true); ok && near != name {
		return near
	}
	if near, ok := suggest.Search(strings.ToUpper(name), options, true); ok && near != name {
		return near
	}
	return ""
}
