/* Makes some calls of the C library slow, for a bench that needs a slow disk and has none. Linux.

       cc -shared -fPIC -o slow_calls.so slow_calls.c
       LD_PRELOAD=./slow_calls.so SLOW_WRITES_US=3000 command
       LD_PRELOAD=./slow_calls.so SLOW_METADATA_US=1000 command                                                    */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static void wait_for(const char *variable) {
    const char *text = getenv(variable);
    long microseconds = text ? atol(text) : 0;
    struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
    if (microseconds > 0)
        nanosleep(&pause, NULL);
}

#define SLOW(variable, type, name, parameters, arguments)                                                              \
    type name parameters {                                                                                             \
        static type(*real) parameters;                                                                                 \
        if (!real)                                                                                                     \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                                                 \
        wait_for(variable);                                                                                            \
        return real arguments;                                                                                         \
    }

SLOW("SLOW_WRITES_US", ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
SLOW("SLOW_WRITES_US", ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
SLOW("SLOW_METADATA_US", int, fchmod, (int file, mode_t mode), (file, mode))
SLOW("SLOW_METADATA_US", int, fchown, (int file, uid_t user, gid_t group), (file, user, group))
SLOW("SLOW_METADATA_US", int, futimens, (int file, const struct timespec times[2]), (file, times))
SLOW("SLOW_METADATA_US", int, renameat, (int from, const char *old, int to, const char *new), (from, old, to, new))
