#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

// TLS: what is a macro, or takes callbacks.
#include <openssl/err.h>
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

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

// Whether a certificate was signed with its own key: only those who have it can trust it.
static inline int parley_x509_is_self_signed(X509 *certificate) {
    return X509_check_issued(certificate, certificate) == X509_V_OK;
}

// Writes a subject alternative name, of a host or an address, as text. Returns its length; 0 for one of another kind; -1 behind the last one.
static inline int parley_x509_name(X509 *certificate, int index, char *text, int size) {
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, 0, 0);
    int length = -1;
    if (index < sk_GENERAL_NAME_num(names)) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, index);
        length = 0;
        if (name->type == GEN_DNS) {
            int count = ASN1_STRING_length(name->d.dNSName);
            if (count <= size) {
                memcpy(text, ASN1_STRING_get0_data(name->d.dNSName), count);
                length = count;
            }
        } else if (name->type == GEN_IPADD) {
            int family = ASN1_STRING_length(name->d.iPAddress) == 4 ? AF_INET : AF_INET6;
            int fits = family == AF_INET || ASN1_STRING_length(name->d.iPAddress) == 16;
            if (fits && inet_ntop(family, ASN1_STRING_get0_data(name->d.iPAddress), text, size)) length = strlen(text);
        }
    }
    GENERAL_NAMES_free(names);
    return length;
}
