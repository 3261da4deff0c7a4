package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
)

// expr evaluates an expression of words: | & = != < <= > >= + - * / % : and
// parentheses, loosest first. The status is 1 if the result is 0 or empty.
func expr(args []string) error {
	e := &expression{rest: args}
	v, err := e.binary(0)
	if err == nil && len(e.rest) > 0 {
		err = fmt.Errorf("unexpected %q", e.rest[0])
	}
	if err != nil {
		complain("expr", err)
		return exit(2)
	}
	fmt.Println(v)
	if v == "" || v == "0" {
		return exit(1)
	}
	return nil
}

type expression struct{ rest []string }

var exprLevels = [][]string{{"|"}, {"&"}, {"=", "!=", "<", "<=", ">", ">="}, {"+", "-"}, {"*", "/", "%"}, {":"}}

func (e *expression) binary(level int) (string, error) {
	if level == len(exprLevels) {
		return e.primary()
	}
	left, err := e.binary(level + 1)
	for err == nil {
		operator := ""
		for _, o := range exprLevels[level] {
			if len(e.rest) > 0 && e.rest[0] == o {
				operator = o
			}
		}
		if operator == "" {
			break
		}
		e.rest = e.rest[1:]
		var right string
		if right, err = e.binary(level + 1); err == nil {
			left, err = apply(left, operator, right)
		}
	}
	return left, err
}

func (e *expression) primary() (string, error) {
	if len(e.rest) == 0 {
		return "", errors.New("expression ends too early")
	}
	word := e.rest[0]
	e.rest = e.rest[1:]
	if word != "(" {
		return word, nil
	}
	v, err := e.binary(0)
	if err != nil {
		return "", err
	}
	if len(e.rest) == 0 || e.rest[0] != ")" {
		return "", errors.New("missing )")
	}
	e.rest = e.rest[1:]
	return v, nil
}

func apply(left, operator, right string) (string, error) {
	empty := func(s string) bool { return s == "" || s == "0" }
	switch operator {
	case "|":
		if !empty(left) {
			return left, nil
		}
		return right, nil
	case "&":
		if empty(left) || empty(right) {
			return "0", nil
		}
		return left, nil
	case ":":
		re, err := regexp.Compile("^(?:" + basicToExtended(right) + ")")
		if err != nil {
			return "", err
		}
		m := re.FindStringSubmatch(left)
		switch {
		case len(m) > 1:
			return m[1], nil
		case re.NumSubexp() > 0:
			return "", nil
		case m == nil:
			return "0", nil
		}
		return strconv.Itoa(len(m[0])), nil
	}
	a, err1 := strconv.ParseInt(left, 10, 64)
	b, err2 := strconv.ParseInt(right, 10, 64)
	numbers := err1 == nil && err2 == nil
	truth := func(number, text bool) (string, error) {
		if numbers && number || !numbers && text {
			return "1", nil
		}
		return "0", nil
	}
	switch operator {
	case "=":
		return truth(a == b, left == right)
	case "!=":
		return truth(a != b, left != right)
	case "<":
		return truth(a < b, left < right)
	case "<=":
		return truth(a <= b, left <= right)
	case ">":
		return truth(a > b, left > right)
	case ">=":
		return truth(a >= b, left >= right)
	}
	if !numbers {
		return "", errors.New("not a number")
	}
	switch operator {
	case "+":
		a += b
	case "-":
		a -= b
	case "*":
		a *= b
	default:
		if b == 0 {
			return "", errors.New("division by zero")
		}
		if operator == "/" {
			a /= b
		} else {
			a %= b
		}
	}
	return strconv.FormatInt(a, 10), nil
}
