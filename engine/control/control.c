#include "engine/control/control.h"

#include "engine/control/keys.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/config/option.h"
#include "proto/wire/gate.h"
#include "proto/wire/messages.h"
#include "proto/wire/rendezvous.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

/* libzmq's name for it stands among those that it calls deprecated; there is no other. */
#ifndef ZMQ_IPC_FILTER_UID
#define ZMQ_IPC_FILTER_UID 59
#endif

enum {
    MAX_IDENTITY = 255,  /* of a peer, as ZeroMQ has it */
    MAX_WHO = 96,        /* characters that name a peer in the log */
    MAX_QUEUE = 2 * CONTROL_MAX_CALLS, /* frames that wait for a peer; those behind are lost */
    MAX_UNREAD = 16,     /* frames of a peer that wait for us; it waits with those behind */
    LINGER_MS = 200,     /* for the last replies to go out */
    HANDSHAKE_MS = 3000,
    HEARTBEAT_MS = 5000, /* a peer on tcp that is gone without a word is forgotten after two of them */
    MAX_PROGRESS = 128,
    MAX_TOLD_ARGS = 256, /* bytes of a command's arguments in the log */
};

struct peer {
    uint8_t identity[MAX_IDENTITY];
    size_t identity_size;
    enum control_role role;
    char who[MAX_WHO];
};

/* A call, and what the control thread keeps of it. */
struct pending {
    struct control_call call; /* the front's while it is there */
    struct control *control;
    struct mail mail;
    struct peer peer;
    int64_t id;
    json_t *args;
    enum status status;
    char *text;
};

struct control {
    struct run_dir run_dir;
    char *endpoint;
    bool is_tcp;
    struct control_keys keys;
    struct curve_pair pair;
    void *context, *socket;
    struct zap *zap;
    struct gate *gate; /* over tcp: what strangers cost is bounded */
    pthread_t thread;
    bool has_thread;
    json_t *settings; /* the control thread's, once it runs */
    int64_t started_ns;

    struct mailbox to_front;   /* calls */
    struct mailbox to_control; /* the same, done */
    int32_t num_pending;       /* the control thread's */

    pthread_mutex_t scene_lock; /* held while a command looks, so that what it looks at stays */
    struct server *server;      /* with the lock */
    char progress[MAX_PROGRESS];
};

/* ---- who asks -------------------------------------------------------------------------------- */

/* "…:UID:GID:PID" of a peer on a Unix socket, as libzmq has it from SO_PEERCRED. */
static bool read_credentials(const char *address, unsigned *uid_out, int *pid_out)
{
    const char *at = address ? address + strlen(address) : NULL;
    unsigned gid;

    for (int colons = 0; at && at > address && colons < 3;)
        colons += *--at == ':';
    return at && sscanf(at, ":%u:%u:%d", uid_out, &gid, pid_out) == 3;
}

/* Root may do anything to this process anyway. */
static void name_local_peer(zmq_msg_t *message, struct peer *peer)
{
    unsigned uid;
    int pid;

    if (!read_credentials(zmq_msg_gets(message, "Peer-Address"), &uid, &pid)) {
        snprintf(peer->who, sizeof peer->who, "somebody");
        return;
    }
    snprintf(peer->who, sizeof peer->who, "uid %u, pid %d", uid, pid);
    peer->role = uid == geteuid() || uid == 0 ? ROLE_ADMIN : ROLE_NONE;
}

static void name_remote_peer(const struct control *control, zmq_msg_t *message, struct peer *peer)
{
    const char *public_key = zmq_msg_gets(message, "User-Id");
    const struct control_key *key =
        public_key ? control_keys_find(&control->keys, public_key) : NULL;

    snprintf(peer->who, sizeof peer->who, "%s", key ? key->name : "somebody");
    peer->role = key ? key->role : ROLE_NONE;
}

/* On the ZAP thread; the list is constant. */
static bool allow_key(void *user, const char *public_key)
{
    const struct control *control = user;

    return control_keys_find(&control->keys, public_key) != NULL;
}

/* ---- replies --------------------------------------------------------------------------------- */

/* To a peer that has left, or does not read, nothing is sent, and nothing kept. */
static void reply(struct control *control, const struct peer *peer, int64_t id, enum status status,
                  const char *text)
{
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct control_reply body = {.id = id, .status = (int32_t)status, .text = text};

    if (message_encode(&control_reply_type, 0, -1, &body, &frame) != OK) {
        AUTO_MEM char *why = mem_strdup(fail_text());

        body.status = ERR_FULL;
        body.text = why;
        ASSERT(message_encode(&control_reply_type, 0, -1, &body, &frame) == OK, "%s", fail_text());
    }
    if (zmq_send(control->socket, peer->identity, peer->identity_size,
                 ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
        zmq_send(control->socket, frame.data, frame.size, ZMQ_DONTWAIT) < 0)
        log_debug("control: %s does not get its answer: %s", peer->who, zmq_strerror(errno));
}

static char *dump(json_t *json)
{
    char *text = json ? json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY) : mem_strdup("\"done\"");

    json_decref(json);
    return text ? text : mem_strdup("null");
}

/* ---- commands that act ----------------------------------------------------------------------- */

static void free_pending(struct pending *pending)
{
    json_decref(pending->args);
    json_decref(pending->call.changed);
    mem_free(pending->text);
    mem_free(pending);
}

/* Who did what, and what came of it: at any level of the log, for it is all that tells. */
static void audit(const struct pending *pending)
{
    AUTO_MEM char *args = json_dumps(pending->args, JSON_COMPACT);

    log_line(MAX(MIN(LOG_INFO, log_get_level()), LOG_ERROR), __FILE__, __LINE__,
             "control: %s: %s %.*s: %s", pending->peer.who, pending->call.command->name,
             MAX_TOLD_ARGS, args ? args : "", pending->status == OK ? "done" : pending->text);
}

static void end_pending(struct control *control, struct pending *pending)
{
    audit(pending);
    if (pending->status == OK && pending->call.changed)
        json_object_update(control->settings, pending->call.changed);
    reply(control, &pending->peer, pending->id, pending->status, pending->text);
    control->num_pending--;
    free_pending(pending);
}

void control_call_end(struct control_call *call, enum status status, const char *why, json_t *json)
{
    struct pending *pending = CONTAINER_OF(call, struct pending, call);

    pending->status = status;
    pending->text = status == OK ? dump(json) : mem_strdup(why);
    if (status != OK)
        json_decref(json);
    if (mailbox_push(&pending->control->to_control, &pending->mail) != OK)
        free_pending(pending); /* the thread has ended */
}

/* Takes the arguments. */
static void act(struct control *control, const struct peer *peer, int64_t id,
                const struct control_command *command, json_t *args)
{
    struct pending *pending = mem_new(struct pending);
    enum status status;

    *pending = (struct pending){
        .call = {.command = command, .args = args},
        .control = control,
        .peer = *peer,
        .id = id,
        .args = args,
    };
    control->num_pending++;
    if (control->num_pending > CONTROL_MAX_CALLS)
        status = fail(ERR_FULL, "%d commands are being carried out, which is the most",
                      CONTROL_MAX_CALLS);
    else
        status = mailbox_push(&control->to_front, &pending->mail); /* the front's, if it went well */
    if (status != OK) {
        pending->status = status;
        pending->text = mem_strdup(fail_text());
        end_pending(control, pending);
    }
}

/* ---- commands that look ---------------------------------------------------------------------- */

static void look(struct control *control, const struct peer *peer, int64_t id,
                 const struct control_command *command, json_t *args)
{
    json_t *json = NULL;
    enum status status;

    pthread_mutex_lock(&control->scene_lock);
    status = command->look(
        &(struct control_scene){
            .server = control->server,
            .progress = control->progress,
            .settings = control->settings,
            .started_ns = control->started_ns,
        },
        args, &json);
    pthread_mutex_unlock(&control->scene_lock);

    AUTO_MEM char *text = status == OK ? dump(json) : mem_strdup(fail_text());
    reply(control, peer, id, status, text);
    json_decref(args);
}

/* ---- requests -------------------------------------------------------------------------------- */

static enum status read_args_text(const char *text, json_t **out)
{
    json_error_t error;

    *out = NULL;
    if (!*text)
        return OK;
    *out = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!*out)
        return fail(ERR_INVALID, "the arguments are no JSON: column %d: %s", error.column,
                    error.text);
    return OK;
}

static bool is_attached(struct control *control)
{
    pthread_mutex_lock(&control->scene_lock);
    bool is = control->server != NULL;
    pthread_mutex_unlock(&control->scene_lock);
    return is;
}

static enum status fail_unattached(struct control *control)
{
    pthread_mutex_lock(&control->scene_lock); /* the front changes the words */
    enum status status = fail(ERR_CLOSED, "the engine takes no orders now: %s", control->progress);
    pthread_mutex_unlock(&control->scene_lock);
    return status;
}

/* The row, and arguments that fit it. */
static enum status read_command(struct control *control, const struct peer *peer,
                                const struct control_request *request,
                                const struct control_command **command_out, json_t **args_out)
{
    json_t *args;
    size_t num_words;
    enum status status = read_args_text(request->args, &args);

    TRY(status);
    status = control_command_find(request->command, args, command_out, &num_words);
    if (status == OK && (*command_out)->role > peer->role)
        status = fail(ERR_DENIED, "%s may %s only; %s wants %s", peer->who,
                      control_role_name(peer->role), (*command_out)->name,
                      control_role_name((*command_out)->role));
    if (status == OK)
        status = control_args_read(*command_out, args, num_words, args_out);
    json_decref(args);
    TRY(status);
    if ((*command_out)->act && !is_attached(control)) {
        json_decref(*args_out);
        return fail_unattached(control);
    }
    return OK;
}

static void on_request(struct control *control, const struct peer *peer,
                       const struct control_request *request)
{
    const struct control_command *command = NULL;
    json_t *args = NULL;
    enum status status = read_command(control, peer, request, &command, &args);

    if (status == ERR_DENIED)
        log_warn("control: %s: refused", fail_text());
    if (status != OK)
        reply(control, peer, request->id, status, fail_text());
    else if (command->look)
        look(control, peer, request->id, command, args);
    else
        act(control, peer, request->id, command, args);
}

/* `data` is what a peer sent, who may be anybody that got in. */
static void on_frame(struct control *control, const struct peer *peer, const void *data, size_t size)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct message message;
    enum status status;

    if (peer->role == ROLE_NONE) {
        log_warn("control: %s may not ask anything", peer->who);
        return;
    }
    status = message_decode(data, size, &arena, &message);
    if (status == OK && message.type != &control_request_type)
        status = fail(ERR_MISMATCH, "a %s came where control_request is expected",
                      message.type->name);
    if (status == OK)
        on_request(control, peer, message.body);
    else
        reply(control, peer, -1, status, fail_text());
}

/* One message of two parts, who and what; others are thrown away. false: none was there. */
static bool hear_one(struct control *control)
{
    struct peer peer = {0};
    zmq_msg_t part;
    int num_parts = 0;
    bool more = true;

    zmq_msg_init(&part);
    while (more) {
        if (zmq_msg_recv(&part, control->socket, ZMQ_DONTWAIT) < 0)
            break;
        num_parts++;
        more = zmq_msg_more(&part);
        if (num_parts == 1) {
            peer.identity_size = MIN(zmq_msg_size(&part), (size_t)MAX_IDENTITY);
            memcpy(peer.identity, zmq_msg_data(&part), peer.identity_size);
        } else if (num_parts == 2 && !more) {
            if (control->is_tcp)
                name_remote_peer(control, &part, &peer);
            else
                name_local_peer(&part, &peer);
            if (control->gate)
                gate_know(control->gate, &part);
            on_frame(control, &peer, zmq_msg_data(&part), zmq_msg_size(&part));
        }
    }
    zmq_msg_close(&part);
    return num_parts > 0;
}

static void end_those_done(struct control *control)
{
    struct mail *mail;

    while ((mail = mailbox_pop(&control->to_control)))
        end_pending(control, MAIL_ITEM(mail, struct pending, mail));
}

static void *serve(void *user)
{
    struct control *control = user;
    zmq_pollitem_t items[] = {
        {.socket = control->socket, .events = ZMQ_POLLIN},
        {.fd = mailbox_fd(&control->to_control), .events = ZMQ_POLLIN},
    };

    pthread_setname_np(pthread_self(), "control");
    while (!mailbox_is_shut(&control->to_control)) {
        end_those_done(control);
        if (!hear_one(control) && zmq_poll(items, COUNT_OF(items), -1) < 0)
            ASSERT(errno == EINTR, "zmq_poll: %s", zmq_strerror(errno));
    }
    end_those_done(control);
    return NULL;
}

/* ---- opening --------------------------------------------------------------------------------- */

static void set_int(void *socket, int option, int value)
{
    int rc = zmq_setsockopt(socket, option, &value, sizeof value);

    ASSERT(rc == 0, "ZeroMQ option %d: %s", option, zmq_strerror(errno));
}

static void set_limits(void *socket)
{
    int64_t max_frame = MAX_CONTROL_FRAME;

    set_int(socket, ZMQ_LINGER, LINGER_MS);
    set_int(socket, ZMQ_SNDHWM, MAX_QUEUE);
    set_int(socket, ZMQ_RCVHWM, MAX_UNREAD);
    set_int(socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
    set_int(socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
    set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_MS);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof max_frame);
}

/* ZeroMQ would take the path away from whoever listens there. */
static enum status check_path_is_free(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat info;
    int fd, rc;

    if (strlen(path) >= sizeof address.sun_path || !*path)
        return fail(ERR_INVALID, "--control: the socket's path %s has %zu bytes, it must have 1 to "
                    "%zu", path, strlen(path), sizeof address.sun_path - 1);
    if (lstat(path, &info) != 0)
        return OK;
    if (!S_ISSOCK(info.st_mode))
        return fail(ERR_INVALID, "--control: %s is there, and no socket", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(ERR_IO, "no socket: %m");
    rc = connect(fd, (const struct sockaddr *)&address, sizeof address);
    close(fd);
    return rc == 0 ? fail(ERR_IO, "--control: another process listens on %s", path) : OK;
}

/* The peers that may connect, by what the kernel says of them. */
static void set_ipc_filter(void *socket)
{
    const uid_t users[] = {geteuid(), 0};

    for (size_t i = 0; i < COUNT_OF(users); i++)
        if (zmq_setsockopt(socket, ZMQ_IPC_FILTER_UID, &users[i], sizeof users[i]) != 0)
            log_debug("control: this libzmq does not ask who connects; the socket's mode decides");
}

static enum status listen_ipc(struct control *control, const char *endpoint)
{
    const char *path = endpoint + strlen("ipc://");

    TRY(check_path_is_free(path));
    set_ipc_filter(control->socket);
    if (zmq_bind(control->socket, endpoint) != 0)
        return fail(ERR_IO, "--control %s: %s", endpoint, zmq_strerror(errno));
    if (chmod(path, 0600) != 0)
        return fail(ERR_IO, "--control: the mode of %s can't be set: %m", path);
    control->endpoint = mem_strdup(endpoint);
    return OK;
}

static enum status take_pair(struct control *control, const char *path)
{
    struct control_key_file file;

    if (!path)
        return curve_pair_new(&control->pair);
    TRY(control_key_file_read(path, &file));
    control->pair = file.pair;
    explicit_bzero(&file, sizeof file);
    return OK;
}

static enum status listen_tcp(struct control *control, const struct control_options *options)
{
    if (!options->keys_path)
        return fail(ERR_INVALID,
                    "--control %s: say with --control-keys FILE who may ask; tcp is for keys only",
                    options->endpoint);
    TRY(control_keys_read(options->keys_path, &control->keys));
    TRY(take_pair(control, options->key_path));
    TRY(zap_start(control->context, allow_key, control, &control->zap));
    TRY(curve_as_server(control->socket, &control->pair));
    control->is_tcp = true;
    if (gate_open(control->context, control->socket, options->endpoint, &control->gate) != OK)
        return fail(ERR_IO, "--control: %s", fail_text());
    control->endpoint = mem_strdup(gate_endpoint(control->gate));
    return OK;
}

static enum status listen_somewhere(struct control *control, const struct control_options *options)
{
    const char *endpoint = options->endpoint;

    if (!endpoint) {
        TRY(run_dir_open(options->run_dir, &control->run_dir));
        AUTO_MEM char *own = mem_printf("ipc://%s/control", control->run_dir.path);
        return listen_ipc(control, own);
    }
    if (strncmp(endpoint, "ipc://", 6) == 0)
        return listen_ipc(control, endpoint);
    if (strncmp(endpoint, "tcp://", 6) == 0)
        return listen_tcp(control, options);
    return fail(ERR_INVALID, "--control %s is no address; use ipc://PATH, tcp://HOST:PORT or none",
                endpoint);
}

static json_t *all_settings(const struct control_options *options)
{
    json_t *all = json_object();

    for (size_t i = 0; i < options->num_settings; i++) {
        const struct option_set *set = &options->settings[i];
        json_t *some = options_to_json(set);

        for (size_t k = 0; k < set->num_options; k++)
            if (set->options[k].is_secret && json_is_string(json_object_get(some, set->options[k].key)))
                json_object_set_new(some, set->options[k].key, json_string("(secret)"));
        json_object_update(all, some);
        json_decref(some);
    }
    return all;
}

enum status control_open(const struct control_options *options, struct control **out)
{
    AUTO_FREE(control) struct control *control = mem_new(struct control);

    control->started_ns = clock_now_ns();
    control->run_dir.lock_fd = -1;
    pthread_mutex_init(&control->scene_lock, NULL);
    control_tell(control, "it starts");
    control->settings = all_settings(options);
    control->context = zmq_ctx_new();
    control->socket = control->context ? zmq_socket(control->context, ZMQ_ROUTER) : NULL;
    if (!control->socket)
        return fail(ERR_IO, "no ZeroMQ socket: %s", zmq_strerror(errno));
    set_limits(control->socket);
    TRY(mailbox_open(&control->to_front, CONTROL_MAX_CALLS));
    TRY(mailbox_open(&control->to_control, CONTROL_MAX_CALLS));
    TRY(listen_somewhere(control, options));
    if (pthread_create(&control->thread, NULL, serve, control) != 0)
        return fail(ERR_IO, "no thread for the control socket: %m");
    control->has_thread = true;
    *out = give(control);
    return OK;
}

static void drop_mails(struct mailbox *mailbox)
{
    struct mail *mail;

    while (mailbox->fd > 0 && (mail = mailbox_pop(mailbox)))
        free_pending(MAIL_ITEM(mail, struct pending, mail));
    mailbox_close(mailbox);
}

void control_free(struct control *control)
{
    if (!control)
        return;
    AUTO_MEM char *sentence = mem_strdup(fail_text()); /* why, if a failure brought us here */

    if (control->has_thread) {
        mailbox_shut(&control->to_control);
        pthread_join(control->thread, NULL);
    }
    if (control->socket)
        zmq_close(control->socket);
    gate_free(control->gate);
    zap_free(control->zap);
    if (control->context)
        zmq_ctx_term(control->context);
    drop_mails(&control->to_front);
    drop_mails(&control->to_control);
    if (control->run_dir.path)
        run_dir_close(&control->run_dir);
    else if (control->endpoint && !control->is_tcp)
        unlink(control->endpoint + strlen("ipc://"));
    control_keys_close(&control->keys);
    explicit_bzero(&control->pair, sizeof control->pair);
    pthread_mutex_destroy(&control->scene_lock);
    json_decref(control->settings);
    mem_free(control->endpoint);
    mem_free(control);
    (void)fail(OK, "%s", sentence);
}

/* ---- the front's side ------------------------------------------------------------------------ */

const char *control_endpoint(const struct control *control)
{
    return control->endpoint;
}

const char *control_public_key(const struct control *control)
{
    return control->is_tcp ? control->pair.public_key : NULL;
}

void control_tell(struct control *control, const char *words)
{
    pthread_mutex_lock(&control->scene_lock);
    snprintf(control->progress, sizeof control->progress, "%s", words);
    pthread_mutex_unlock(&control->scene_lock);
}

void control_attach(struct control *control, struct server *server)
{
    pthread_mutex_lock(&control->scene_lock);
    control->server = server;
    pthread_mutex_unlock(&control->scene_lock);
}

void control_detach(struct control *control)
{
    struct mail *mail;

    if (!control)
        return;
    control_tell(control, "it stops");
    control_attach(control, NULL);
    mailbox_shut(&control->to_front);
    while ((mail = mailbox_pop(&control->to_front)))
        control_call_end(&MAIL_ITEM(mail, struct pending, mail)->call, ERR_CLOSED,
                         "the server ends", NULL);
}

int control_fd(const struct control *control)
{
    return mailbox_fd(&control->to_front);
}

void control_poll(struct control *control)
{
    struct mail *mail;

    while ((mail = mailbox_pop(&control->to_front))) {
        struct control_call *call = &MAIL_ITEM(mail, struct pending, mail)->call;

        call->server = control->server; /* the lock is for other threads: only this one writes it */
        call->command->act(call);
    }
}
