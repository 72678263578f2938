#include "async/tls.h"

#include <algorithm>
#include <utility>

#include <arpa/inet.h>

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "async/deadline.h"
#include "base/units.h"

namespace berth {
namespace {

constexpr std::size_t incoming_size = 32 * KiB;
constexpr std::size_t outgoing_size = 128 * KiB;
constexpr std::size_t record_plaintext_max = SSL3_RT_MAX_PLAIN_LENGTH;
constexpr std::size_t record_size_max = SSL3_RT_MAX_PACKET_SIZE;
// What a peer may make us say (key updates, alerts) before we have sent any of it.
constexpr std::size_t unasked_output_max = 64 * KiB;

/// Whether the reason says that a certificate was refused, by the peer's alert or by our own check.
bool is_about_certificates(int reason) {
  switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED: return true;
    default: return false;
  }
}

bool is_ip_address(const std::string& host) {
  in6_addr any{};
  return ::inet_pton(AF_INET, host.c_str(), &any) == 1 ||
         ::inet_pton(AF_INET6, host.c_str(), &any) == 1;
}

}  // namespace

void TlsStream::Free::operator()(ssl_st* connection) const { ::SSL_free(connection); }

TlsStream::TlsStream(Loop& loop, std::shared_ptr<const TlsContext> context,
                     std::unique_ptr<Stream> transport)
    : loop_(loop), context_(std::move(context)), transport_(std::move(transport)), sending_(loop) {}

Result<void> TlsStream::set_up() {
  connection_.reset(::SSL_new(context_->get()));
  received_ = ::BIO_new(::BIO_s_mem());
  pending_ = ::BIO_new(::BIO_s_mem());
  if (connection_ == nullptr || received_ == nullptr || pending_ == nullptr) {
    ::BIO_free(received_);
    ::BIO_free(pending_);
    return failure(ErrorKind::internal,
                   "cannot set up a TLS connection: " + detail::take_tls_error());
  }
  ::SSL_set_bio(connection_.get(), received_, pending_);
  incoming_ = AlignedBuffer(incoming_size);
  outgoing_ = AlignedBuffer(outgoing_size);
  return {};
}

Result<void> TlsStream::expect_host(const std::string& host) {
  bool accepted = false;
  if (is_ip_address(host)) {
    accepted =
        ::X509_VERIFY_PARAM_set1_ip_asc(::SSL_get0_param(connection_.get()), host.c_str()) == 1;
  } else if (!host.empty()) {  // an empty one would switch the check off
    accepted = ::SSL_set1_host(connection_.get(), host.c_str()) == 1 &&
               ::SSL_set_tlsext_host_name(connection_.get(), host.c_str()) == 1;
  }
  ::ERR_clear_error();
  if (!accepted)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not the name of a host", host));
  return {};
}

Task<Result<std::unique_ptr<TlsStream>>> TlsStream::accept(
    Loop& loop, std::shared_ptr<const TlsContext> context, std::unique_ptr<Stream> transport,
    Duration timeout) {
  std::unique_ptr<TlsStream> stream(new TlsStream(loop, std::move(context), std::move(transport)));
  CO_TRY(stream->set_up());
  ::SSL_set_accept_state(stream->connection_.get());
  co_return co_await shake_hands_in_time(std::move(stream), timeout);
}

Task<Result<std::unique_ptr<TlsStream>>> TlsStream::connect(
    Loop& loop, std::shared_ptr<const TlsContext> context, std::unique_ptr<Stream> transport,
    std::string host, Duration timeout) {
  std::unique_ptr<TlsStream> stream(new TlsStream(loop, std::move(context), std::move(transport)));
  CO_TRY(stream->set_up());
  CO_TRY(stream->expect_host(host));
  ::SSL_set_connect_state(stream->connection_.get());
  co_return co_await shake_hands_in_time(std::move(stream), timeout);
}

Task<Result<std::unique_ptr<TlsStream>>> TlsStream::shake_hands_in_time(
    std::unique_ptr<TlsStream> stream, Duration timeout) {
  Deadline deadline(stream->loop_, timeout, [&stream] { stream->shutdown(); });
  auto outcome = co_await stream->shake_hands();
  co_await deadline.stop();
  if (outcome) co_return std::move(stream);
  if (deadline.expired()) {
    co_return failure(ErrorKind::timed_out,
                      fmt::format("no TLS handshake with {} within {} ms", stream->peer(),
                                  timeout / std::chrono::milliseconds(1)));
  }
  co_return failure(std::move(outcome).error());
}

Task<Result<void>> TlsStream::shake_hands() {
  while (true) {
    ::ERR_clear_error();
    const int outcome = ::SSL_do_handshake(connection_.get());
    if (outcome == 1) co_return co_await send_pending();
    if (::SSL_get_error(connection_.get(), outcome) != SSL_ERROR_WANT_READ) break;
    CO_TRY(co_await send_pending());
    CO_TRY(co_await receive());
  }
  Error error = failed("agree on TLS with");
  // The peer should hear why, and need not be there any more to do so.
  if (co_await send_pending()) static_cast<void>(co_await transport_->finish_writing());
  co_return failure(std::move(error));
}

/// More records, as they come. Only called when there is no whole one left, so that little lies in
/// the BIO.
Task<Result<void>> TlsStream::receive() {
  const std::size_t got = CO_TRY(co_await transport_->read_some(incoming_.bytes()));
  if (got == 0) {
    co_return failure(ErrorKind::disconnected,
                      fmt::format("{} closed the connection without ending TLS", peer()));
  }
  if (::BIO_write(received_, incoming_.data(), static_cast<int>(got)) != static_cast<int>(got)) {
    co_return failure(ErrorKind::internal, "out of memory for TLS: " + detail::take_tls_error());
  }
  co_return Result<void>{};
}

/// Sends all that is to be sent. The caller holds sending_, or nobody else can be there yet.
Task<Result<void>> TlsStream::send_pending() {
  while (::BIO_ctrl_pending(pending_) > 0) {
    const int length = ::BIO_read(pending_, outgoing_.data(), static_cast<int>(outgoing_.size()));
    if (length <= 0) break;
    const Bytes part = outgoing_.first(static_cast<std::size_t>(length));
    CO_TRY(co_await transport_->write_all({&part, 1}));
  }
  co_return Result<void>{};
}

Error TlsStream::failed(const char* what) {
  const unsigned long code = ::ERR_peek_last_error();
  std::string reason = detail::take_tls_error();
  if (const long verdict = ::SSL_get_verify_result(connection_.get()); verdict != X509_V_OK) {
    reason += fmt::format(" ({})", ::X509_verify_cert_error_string(verdict));
  }
  const bool refused =
      ERR_GET_LIB(code) == ERR_LIB_SSL && is_about_certificates(ERR_GET_REASON(code));
  return {refused ? ErrorKind::permission : ErrorKind::protocol,
          fmt::format("cannot {} {}: {}", what, peer(), reason)};
}

/// What has arrived, 0 at the end; nothing if there is no whole record yet.
Result<std::optional<std::size_t>> TlsStream::decrypt(MutableBytes into) {
  std::size_t total = 0;
  do {
    ::ERR_clear_error();
    std::size_t got = 0;
    const int outcome =
        ::SSL_read_ex(connection_.get(), into.data() + total, into.size() - total, &got);
    total += got;
    if (outcome == 1) continue;
    if (total > 0) break;  // an error comes again with the next read
    switch (::SSL_get_error(connection_.get(), outcome)) {
      case SSL_ERROR_WANT_READ: return std::nullopt;
      case SSL_ERROR_ZERO_RETURN: return 0;
      default: return failure(failed("read from"));
    }
  } while (total < into.size() && ::BIO_ctrl_pending(received_) > 0);
  return total;
}

Task<Result<std::size_t>> TlsStream::read_some(MutableBytes into) {
  if (into.empty()) co_return 0;
  while (true) {
    if (const auto got = CO_TRY(decrypt(into))) co_return *got;
    // Answers to key updates go out with the next write.
    if (::BIO_ctrl_pending(pending_) > outgoing_size + unasked_output_max) {
      co_return failure(ErrorKind::protocol,
                        fmt::format("{} asks for too many key updates", peer()));
    }
    CO_TRY(co_await receive());
  }
}

Task<Result<void>> TlsStream::write_all(std::span<const Bytes> parts) {
  auto guard = co_await sending_.lock();
  if (finished_)
    co_return failure(ErrorKind::disconnected,
                      fmt::format("the writes to {} have been finished", peer()));
  for (Bytes part : parts) {
    while (!part.empty()) {
      const Bytes piece = part.first(std::min(part.size(), record_plaintext_max));
      ::ERR_clear_error();
      std::size_t written = 0;
      if (::SSL_write_ex(connection_.get(), piece.data(), piece.size(), &written) != 1) {
        co_return failure(failed("write to"));
      }
      part = part.subspan(written);
      if (::BIO_ctrl_pending(pending_) > outgoing_size - record_size_max)
        CO_TRY(co_await send_pending());
    }
  }
  co_return co_await send_pending();
}

Task<Result<void>> TlsStream::finish_writing() {
  auto guard = co_await sending_.lock();
  if (finished_) co_return Result<void>{};
  finished_ = true;
  ::ERR_clear_error();
  if (::SSL_shutdown(connection_.get()) < 0) co_return failure(failed("end TLS with"));
  CO_TRY(co_await send_pending());
  co_return co_await transport_->finish_writing();
}

std::string TlsStream::peer_subject() const {
  const std::unique_ptr<X509, decltype([](X509* certificate) { ::X509_free(certificate); })>
      certificate(::SSL_get1_peer_certificate(connection_.get()));
  const std::unique_ptr<BIO, decltype([](BIO* bio) { ::BIO_free(bio); })> text(
      ::BIO_new(::BIO_s_mem()));
  if (certificate == nullptr || text == nullptr) return "";
  ::X509_NAME_print_ex(text.get(), ::X509_get_subject_name(certificate.get()), 0, XN_FLAG_RFC2253);
  char* data = nullptr;
  const long length = ::BIO_get_mem_data(text.get(), &data);
  return {data, static_cast<std::size_t>(std::max(length, 0L))};
}

}  // namespace berth
