package main

import (
	"fmt"
	"strings"
)

func runCompletion(c *command, args []string) error {
	flags := newFlags(c)
	if err := c.parse(flags, args, 1, 1); err != nil {
		return err
	}
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	words := strings.Join(names, " ")
	switch shell := flags.Arg(0); shell {
	case "bash":
		fmt.Printf("_irfs() {\n\tlocal word=${COMP_WORDS[COMP_CWORD]}\n\tif [ \"$COMP_CWORD\" = 1 ]; then COMPREPLY=($(compgen -W %q -- \"$word\")); fi\n}\ncomplete -o default -F _irfs irfs\n", words)
	case "zsh":
		fmt.Printf("#compdef irfs\n_irfs() {\n\tif (( CURRENT == 2 )); then compadd %s; else _files; fi\n}\ncompdef _irfs irfs\n", words)
	case "fish":
		for _, c := range commands() {
			fmt.Printf("complete -c irfs -n __fish_use_subcommand -a %s -d %q\n", c.name, c.summary)
		}
	default:
		return &usageError{c, fmt.Sprintf("no completion for %q", shell)}
	}
	return nil
}
