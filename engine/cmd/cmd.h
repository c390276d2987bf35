/*
 * cmd: the subcommands. Each is a file of this folder and a row in engine/main.c; argv[0] is the
 * subcommand's name. They answer --help themselves and return the exit status: one of exit_code.h,
 * 1 where a part of the input was refused.
 */
#ifndef ENGINE_CMD_CMD_H
#define ENGINE_CMD_CMD_H

int cmd_bench(int argc, char **argv);
int cmd_ctl(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_grammar_host(int argc, char **argv);
int cmd_launch(int argc, char **argv);
int cmd_launch_agent(int argc, char **argv);
int cmd_replay(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_token(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_trace(int argc, char **argv);
int cmd_worker(int argc, char **argv);

#endif
