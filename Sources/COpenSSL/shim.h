#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

// TLS: what is a macro, or takes callbacks.
#include <openssl/err.h>
#include <openssl/ssl.h>

static int parley_alpn_select(
    SSL *ssl, const unsigned char **chosen, unsigned char *chosen_count, const unsigned char *offered, unsigned int offered_count,
    void *context) {
    static const unsigned char http11[] = "\x08http/1.1";
    (void)ssl;
    (void)context;
    if (SSL_select_next_proto((unsigned char **)chosen, chosen_count, http11, sizeof(http11) - 1, offered, offered_count) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    return SSL_TLSEXT_ERR_OK;
}

// A server's context: TLS 1.2 and later, forward secrecy and authenticated ciphers only, HTTP/1.1 by ALPN.
static inline SSL_CTX *parley_tls_context(void) {
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context) return 0;
    if (!SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
        !SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20")) {
        SSL_CTX_free(context);
        return 0;
    }
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    // A connection that waits holds no record buffers.
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_select_cb(context, parley_alpn_select, 0);
    return context;
}

// Whether what failed last was a request without TLS: the client spoke HTTP to the port.
static inline int parley_tls_got_http(void) { return ERR_GET_REASON(ERR_peek_error()) == SSL_R_HTTP_REQUEST; }

static inline int parley_bio_pending(BIO *bio) { return (int)BIO_ctrl_pending(bio); }
