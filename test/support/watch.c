// Preloaded by test_quiet.py: a line in the file $WATCHED for each child process, and for each
// packet or question for an address that leaves the machine, multicast (ROS's discovery) aside.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *what, const char *whom) {
  const char *path = getenv("WATCHED");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%s %s\n", what, whom);
  fclose(file);
}

static int stays(const struct sockaddr *to) {
  if (to->sa_family == AF_INET6) {
    const struct in6_addr *to6 = &((const struct sockaddr_in6 *)to)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(to6) || IN6_IS_ADDR_MULTICAST(to6);
  }
  if (to->sa_family != AF_INET) return 1;
  in_addr_t address = ((const struct sockaddr_in *)to)->sin_addr.s_addr;
  int first = ntohl(address) >> 24, found = first == 127 || first == 0 || first >> 4 == 14;
  struct ifaddrs *all = NULL;
  getifaddrs(&all);
  for (struct ifaddrs *at = all; at; at = at->ifa_next)
    if (at->ifa_addr && at->ifa_addr->sa_family == AF_INET)
      found |= ((struct sockaddr_in *)at->ifa_addr)->sin_addr.s_addr == address;
  freeifaddrs(all);
  return found;
}

static void look(const char *what, const struct sockaddr *to) {
  if (to && !stays(to)) {
    char name[INET6_ADDRSTRLEN] = "";
    inet_ntop(to->sa_family, to->sa_data + (to->sa_family == AF_INET ? 2 : 6), name, sizeof name);
    note(what, name);
  }
}

int connect(int fd, const struct sockaddr *to, socklen_t size) {
  look("connect", to);
  return NEXT(connect)(fd, to, size);
}

ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t size) {
  look("sendto", to);
  return NEXT(sendto)(fd, data, n, flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  look("sendmsg", (const struct sockaddr *)message->msg_name);
  return NEXT(sendmsg)(fd, message, flags);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  struct in6_addr number;
  if (node && !inet_pton(AF_INET, node, &number) && !inet_pton(AF_INET6, node, &number))
    note("getaddrinfo", node);
  return NEXT(getaddrinfo)(node, service, hints, found);
}

pid_t fork(void) {
  note("fork", "");
  return NEXT(fork)();
}

int execv(const char *path, char *const argv[]) {
  note("exec", path);
  return NEXT(execv)(path, argv);
}

int execve(const char *path, char *const argv[], char *const envp[]) {
  note("exec", path);
  return NEXT(execve)(path, argv, envp);
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
  note("spawn", path);
  return NEXT(posix_spawn)(pid, path, actions, attributes, argv, envp);
}

int system(const char *command) {
  note("system", command ? command : "");
  return NEXT(system)(command);
}

FILE *popen(const char *command, const char *type) {
  note("popen", command);
  return NEXT(popen)(command, type);
}
