#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

// HMAC() returns a pointer that Swift would have to unwrap; 1 for success is the way of the other calls.
static inline int parley_hmac_sha256(
    const unsigned char *key, size_t key_count, const unsigned char *message, size_t message_count, unsigned char *output,
    unsigned int *output_count) {
    return HMAC(EVP_sha256(), key, (int)key_count, message, message_count, output, output_count) != 0;
}
