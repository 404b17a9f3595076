#include <uv.h>

// A GNU extension that the Glibc module leaves out.
extern int pthread_setname_np(pthread_t thread, const char *name);

static inline void parley_name_this_thread(const char *name) { pthread_setname_np(pthread_self(), name); }
