#include "async/tls_context.h"

#include <array>
#include <cerrno>

#include <unistd.h>

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>

namespace berth {
namespace {

int refuse_passphrase(char* /*buffer*/, int /*size*/, int /*for_writing*/, void* /*data*/) {
  return -1;
}

Result<void> check_readable(const std::string& path) {
  if (::access(path.c_str(), R_OK) == 0) return {};
  return errno_failure(errno, fmt::format("cannot read '{}'", path));
}

std::unexpected<Error> bad_file(const std::string& path) {
  return failure(ErrorKind::invalid_argument,
                 fmt::format("cannot use '{}': {}", path, detail::take_tls_error()));
}

Result<void> use_certificate(SSL_CTX* context, const std::string& directory, const char* who) {
  const std::string certificate = fmt::format("{}/{}-cert.pem", directory, who);
  const std::string key = fmt::format("{}/{}-key.pem", directory, who);
  TRY(check_readable(certificate));
  TRY(check_readable(key));
  if (::SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1)
    return bad_file(certificate);
  if (::SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1)
    return bad_file(key);
  if (::SSL_CTX_check_private_key(context) != 1) return bad_file(key);
  return {};
}

Result<void> trust_authority(SSL_CTX* context, const std::string& directory) {
  const std::string authority = directory + "/ca-cert.pem";
  TRY(check_readable(authority));
  if (::SSL_CTX_load_verify_file(context, authority.c_str()) != 1) return bad_file(authority);

  const std::string revoked = directory + "/ca-crl.pem";
  if (::access(revoked.c_str(), F_OK) != 0) return {};
  X509_STORE* store = ::SSL_CTX_get_cert_store(context);
  X509_LOOKUP* lookup = ::X509_STORE_add_lookup(store, ::X509_LOOKUP_file());
  if (lookup == nullptr || ::X509_load_crl_file(lookup, revoked.c_str(), X509_FILETYPE_PEM) < 1)
    return bad_file(revoked);
  ::X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
  return {};
}

}  // namespace

std::string detail::take_tls_error() {
  const unsigned long code = ::ERR_peek_last_error();
  ::ERR_clear_error();
  if (code == 0) return "";
  if (const char* reason = ::ERR_reason_error_string(code); reason != nullptr) return reason;
  std::array<char, 256> text{};
  ::ERR_error_string_n(code, text.data(), text.size());
  return text.data();
}

void TlsContext::Free::operator()(ssl_ctx_st* context) const { ::SSL_CTX_free(context); }

Result<TlsContext::Owner> TlsContext::create(bool is_server) {
  Owner context(::SSL_CTX_new(is_server ? ::TLS_server_method() : ::TLS_client_method()));
  if (context == nullptr)
    return failure(ErrorKind::internal, "cannot set up TLS: " + detail::take_tls_error());
  if (::SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1) {
    return failure(ErrorKind::unsupported,
                   "this OpenSSL has no TLS 1.2: " + detail::take_tls_error());
  }
  ::SSL_CTX_set_options(context.get(),
                        SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
  ::SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_num_tickets(context.get(), 0);
  ::SSL_CTX_set_default_passwd_cb(context.get(), refuse_passphrase);
  return context;
}

Result<std::shared_ptr<const TlsContext>> TlsContext::server(const std::string& directory,
                                                             ClientCertificates clients) {
  Owner context = TRY(create(true));
  TRY(use_certificate(context.get(), directory, "server"));
  if (clients == ClientCertificates::required) {
    TRY(trust_authority(context.get(), directory));
    ::SSL_CTX_set_client_CA_list(context.get(),
                                 ::SSL_load_client_CA_file((directory + "/ca-cert.pem").c_str()));
    ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  return std::shared_ptr<const TlsContext>(new TlsContext(std::move(context)));
}

Result<std::shared_ptr<const TlsContext>> TlsContext::client(const std::string& directory) {
  Owner context = TRY(create(false));
  TRY(trust_authority(context.get(), directory));
  ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (::access((directory + "/client-cert.pem").c_str(), F_OK) == 0) {
    TRY(use_certificate(context.get(), directory, "client"));
  }
  return std::shared_ptr<const TlsContext>(new TlsContext(std::move(context)));
}

}  // namespace berth
