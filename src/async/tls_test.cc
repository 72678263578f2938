// What is checked here: who is let in and who is not, on either side; that bytes arrive whole in
// both directions at once; that an end without close_notify is never taken for the end of the data;
// and that peers that say nothing, or nonsense, are got rid of.
#include "async/tls.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/socket.h>

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "async/socket.h"
#include "async/test_support.h"
#include "base/units.h"

namespace berth {
namespace {

using namespace std::chrono_literals;
using Clients = TlsContext::ClientCertificates;

using Key = std::unique_ptr<EVP_PKEY, decltype([](EVP_PKEY* key) { ::EVP_PKEY_free(key); })>;
using Certificate =
    std::unique_ptr<X509, decltype([](X509* certificate) { ::X509_free(certificate); })>;
using StdioFile = std::unique_ptr<std::FILE, decltype([](std::FILE* file) { std::fclose(file); })>;

/// A certificate authority that lives for one test.
class Authority {
 public:
  explicit Authority(const std::string& name)
      : key_(::EVP_EC_gen("P-256")), certificate_(issue(name, key_.get(), "CA:TRUE", "", 0)) {}

  void write_certificate(const std::string& directory) const {
    write(directory + "/ca-cert.pem", certificate_.get());
  }

  /// WHO-cert.pem and WHO-key.pem; valid from `age` ago, for a day.
  void write_pair(const std::string& directory, const std::string& who, const std::string& names,
                  std::chrono::hours age = 1h) const {
    const Key key(::EVP_EC_gen("P-256"));
    const Certificate certificate = issue(who, key.get(), "CA:FALSE", names, age.count());
    write(directory + "/" + who + "-cert.pem", certificate.get());
    const StdioFile file(std::fopen((directory + "/" + who + "-key.pem").c_str(), "w"));
    CHECK(::PEM_write_PrivateKey(file.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) ==
          1);
  }

 private:
  Certificate issue(const std::string& name, EVP_PKEY* subject_key, const char* constraints,
                    const std::string& names, long age_hours) const {
    Certificate certificate(::X509_new());
    ::X509_set_version(certificate.get(), X509_VERSION_3);
    ::ASN1_INTEGER_set(::X509_get_serialNumber(certificate.get()), ++serial_);
    ::X509_gmtime_adj(::X509_getm_notBefore(certificate.get()), -(age_hours + 1) * 3600);
    ::X509_gmtime_adj(::X509_getm_notAfter(certificate.get()), (24 - age_hours) * 3600);
    ::X509_set_pubkey(certificate.get(), subject_key);
    X509_NAME* subject = ::X509_get_subject_name(certificate.get());
    ::X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                                 reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509* issuer = certificate_ ? certificate_.get() : certificate.get();
    ::X509_set_issuer_name(certificate.get(), ::X509_get_subject_name(issuer));
    add_extension(certificate.get(), issuer, NID_basic_constraints, constraints);
    if (!names.empty())
      add_extension(certificate.get(), issuer, NID_subject_alt_name, names.c_str());
    CHECK(::X509_sign(certificate.get(), key_.get(), ::EVP_sha256()) > 0);
    return certificate;
  }
  static void add_extension(X509* certificate, X509* issuer, int kind, const char* value) {
    X509V3_CTX context;
    ::X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    X509_EXTENSION* extension = ::X509V3_EXT_conf_nid(nullptr, &context, kind, value);
    CHECK(extension != nullptr);
    ::X509_add_ext(certificate, extension, -1);
    ::X509_EXTENSION_free(extension);
  }
  static void write(const std::string& path, X509* certificate) {
    const StdioFile file(std::fopen(path.c_str(), "w"));
    CHECK(file != nullptr && ::PEM_write_X509(file.get(), certificate) == 1);
  }

  mutable long serial_ = 0;
  Key key_;
  Certificate certificate_;
};

struct Ends {
  Result<std::unique_ptr<TlsStream>> client;
  Result<std::unique_ptr<TlsStream>> server;
};

std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> make_transports(UringLoop& loop) {
  std::array<int, 2> fds{};
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0);
  auto left = MUST(SocketStream::adopt(loop, Fd(fds[0])));
  return {std::move(left), MUST(SocketStream::adopt(loop, Fd(fds[1])))};
}

using ContextResult = Result<std::shared_ptr<const TlsContext>>;

Task<Ends> shake_hands(UringLoop& loop, std::shared_ptr<const TlsContext> client_context,
                       std::shared_ptr<const TlsContext> server_context, std::string host) {
  auto transports = make_transports(loop);
  std::optional<Result<std::unique_ptr<TlsStream>>> server;
  const auto serve = [](Loop& on, std::shared_ptr<const TlsContext> context,
                        std::unique_ptr<Stream> transport, auto& outcome) -> Task<> {
    outcome.emplace(co_await TlsStream::accept(on, std::move(context), std::move(transport), 10s));
  };
  Gate gate(loop);
  gate.spawn(serve(loop, std::move(server_context), std::move(transports.second), server));
  auto client = co_await TlsStream::connect(loop, std::move(client_context),
                                            std::move(transports.first), std::move(host), 10s);
  co_await gate.drained();
  co_return Ends{.client = std::move(client), .server = std::move(*server)};
}

std::vector<std::byte> pattern(std::size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((i * 7 + (i >> 8) + seed) & 0xff);
  return bytes;
}

Task<> write_bytes(Stream& stream, Bytes bytes) {
  const std::array<Bytes, 2> parts{bytes.first(bytes.size() / 3), bytes.subspan(bytes.size() / 3)};
  EXPECT_TRUE((co_await stream.write_all(parts)).has_value());
}

Task<> read_bytes(Stream& stream, MutableBytes into) {
  EXPECT_TRUE((co_await stream.read_exactly(into)).has_value());
}

class TlsTest : public LoopTest {
 protected:
  TlsTest() {
    authority_.write_certificate(files_.path());
    authority_.write_pair(files_.path(), "server", "DNS:host-1.example,IP:192.0.2.1");
    authority_.write_pair(files_.path(), "client", "");
  }
  std::shared_ptr<const TlsContext> server(Clients clients = Clients::required) {
    return MUST(TlsContext::server(files_.path(), clients));
  }
  std::shared_ptr<const TlsContext> client() { return MUST(TlsContext::client(files_.path())); }
  Ends connect(std::shared_ptr<const TlsContext> with, std::shared_ptr<const TlsContext> to,
               std::string host = "host-1.example") {
    return run(*loop_, shake_hands(*loop_, std::move(with), std::move(to), std::move(host)));
  }
  Ends connected() {
    Ends ends = connect(client(), server());
    CHECK(ends.client.has_value() && ends.server.has_value());
    return ends;
  }
  ErrorKind first_read(TlsStream& stream) {
    std::array<std::byte, 16> buffer{};
    const auto outcome = run(*loop_, stream.read_some(buffer));
    EXPECT_FALSE(outcome.has_value());
    return outcome ? ErrorKind::internal : outcome.error().kind();
  }

  Authority authority_{"Test Authority"};
  ScratchDirectory files_;
};

TEST_F(TlsTest, CarriesBytesBothWaysAtOnce) {
  Ends ends = connected();
  EXPECT_EQ((*ends.server)->peer_subject(), "CN=client");
  EXPECT_EQ((*ends.client)->peer_subject(), "CN=server");
  const auto up = pattern(3 * MiB + 7, 1);
  const auto down = pattern(2 * MiB + 1, 2);
  std::vector<std::byte> received_up(up.size());
  std::vector<std::byte> received_down(down.size());
  Gate gate(*loop_);
  gate.spawn(write_bytes(**ends.client, up));
  gate.spawn(write_bytes(**ends.server, down));
  gate.spawn(read_bytes(**ends.client, received_down));
  gate.spawn(read_bytes(**ends.server, received_up));
  run(*loop_, gate.drained());
  EXPECT_TRUE(up == received_up);
  EXPECT_TRUE(down == received_down);
}

TEST_F(TlsTest, SmallMessagesGoBackAndForth) {
  Ends ends = connected();
  const auto talk = [](Stream& client, Stream& server) -> Task<Result<void>> {
    for (int i = 0; i < 100; ++i) {
      const auto message = pattern(28, i);
      std::vector<std::byte> heard(28);
      const Bytes part = message;
      CO_TRY(co_await client.write_all({&part, 1}));
      CO_TRY(co_await server.read_exactly(heard));
      CO_TRY(co_await server.write_all({&part, 1}));
      CO_TRY(co_await client.read_exactly(heard));
      EXPECT_TRUE(message == heard);
    }
    co_return Result<void>{};
  };
  run_test(*loop_, talk(**ends.client, **ends.server));
}

TEST_F(TlsTest, AnAddressInTheCertificateIsAHostToo) {
  EXPECT_TRUE(connect(client(), server(), "192.0.2.1").client.has_value());
}

TEST_F(TlsTest, TheClientRefusesAServerOfAnotherName) {
  for (const char* host : {"host-2.example", "192.0.2.2"}) {
    const Ends ends = connect(client(), server(), host);
    ASSERT_FALSE(ends.client.has_value());
    EXPECT_EQ(ends.client.error().kind(), ErrorKind::permission) << ends.client.error().message();
    ASSERT_FALSE(ends.server.has_value());
    EXPECT_EQ(ends.server.error().kind(), ErrorKind::permission) << ends.server.error().message();
  }
}

TEST_F(TlsTest, TheClientNeedsAHostToCheck) {
  auto transports = make_transports(*loop_);
  const auto outcome =
      run(*loop_, TlsStream::connect(*loop_, client(), std::move(transports.first), "", 10s));
  EXPECT_EQ(outcome.error().kind(), ErrorKind::invalid_argument);
}

TEST_F(TlsTest, TheClientRefusesAServerOfAnotherAuthority) {
  const ScratchDirectory other;
  const Authority stranger("Another Authority");
  stranger.write_certificate(other.path());
  stranger.write_pair(other.path(), "server", "DNS:host-1.example");
  const Ends ends = connect(client(), MUST(TlsContext::server(other.path(), Clients::ignored)));
  ASSERT_FALSE(ends.client.has_value());
  EXPECT_EQ(ends.client.error().kind(), ErrorKind::permission);
  EXPECT_NE(ends.client.error().message().find("unable to get local issuer certificate"),
            std::string::npos)
      << ends.client.error().message();
}

TEST_F(TlsTest, TheClientRefusesAnExpiredServer) {
  authority_.write_pair(files_.path(), "server", "DNS:host-1.example", 48h);
  const Ends ends = connect(client(), server());
  ASSERT_FALSE(ends.client.has_value());
  EXPECT_EQ(ends.client.error().kind(), ErrorKind::permission);
  EXPECT_NE(ends.client.error().message().find("expired"), std::string::npos)
      << ends.client.error().message();
}

TEST_F(TlsTest, TheServerRefusesAClientWithoutACertificate) {
  std::filesystem::remove(files_ / "client-cert.pem");
  const auto without = client();
  Ends ends = connect(without, server());
  ASSERT_FALSE(ends.server.has_value());
  EXPECT_EQ(ends.server.error().kind(), ErrorKind::permission) << ends.server.error().message();
  ASSERT_TRUE(ends.client.has_value()) << "TLS 1.3 tells the client later";
  EXPECT_EQ(first_read(**ends.client), ErrorKind::permission);
  EXPECT_TRUE(connect(without, server(Clients::ignored)).server.has_value());
}

TEST_F(TlsTest, TheServerRefusesAClientOfAnotherAuthority) {
  const ScratchDirectory other;
  Authority("Another Authority").write_pair(other.path(), "client", "");
  authority_.write_certificate(other.path());
  Ends ends = connect(MUST(TlsContext::client(other.path())), server());
  ASSERT_FALSE(ends.server.has_value());
  EXPECT_EQ(ends.server.error().kind(), ErrorKind::permission) << ends.server.error().message();
  ASSERT_TRUE(ends.client.has_value());
  EXPECT_EQ(first_read(**ends.client), ErrorKind::permission);
}

TEST_F(TlsTest, ProtocolsBefore12AreRefused) {
  const auto old = client();
  // The context is nobody else's here.
  ASSERT_EQ(::SSL_CTX_set_min_proto_version(old->get(), TLS1_VERSION), 1);
  ASSERT_EQ(::SSL_CTX_set_max_proto_version(old->get(), TLS1_1_VERSION), 1);
  ::SSL_CTX_set_security_level(old->get(), 0);
  const Ends ends = connect(old, server());
  ASSERT_FALSE(ends.server.has_value());
  EXPECT_EQ(ends.server.error().kind(), ErrorKind::protocol) << ends.server.error().message();
}

TEST_F(TlsTest, Version12WorksAndRefusesDuringTheHandshake) {
  const auto version_12 = client();
  ASSERT_EQ(::SSL_CTX_set_max_proto_version(version_12->get(), TLS1_2_VERSION), 1);
  EXPECT_TRUE(connect(version_12, server()).client.has_value());
  std::filesystem::remove(files_ / "client-cert.pem");
  const auto without = client();
  ASSERT_EQ(::SSL_CTX_set_max_proto_version(without->get(), TLS1_2_VERSION), 1);
  const Ends ends = connect(without, server());
  ASSERT_FALSE(ends.client.has_value());
  ASSERT_FALSE(ends.server.has_value());
  EXPECT_EQ(ends.server.error().kind(), ErrorKind::permission);
}

TEST_F(TlsTest, AnOrderlyEndReadsAsZeroBytes) {
  Ends ends = connected();
  const auto talk = [](Stream& client, Stream& server) -> Task<Result<void>> {
    const Bytes last = as_bytes("last words");
    CO_TRY(co_await client.write_all({&last, 1}));
    CO_TRY(co_await client.finish_writing());
    CO_TRY(co_await client.finish_writing());
    std::array<std::byte, 100> buffer{};
    EXPECT_EQ(CO_TRY(co_await server.read_some(buffer)), last.size());
    EXPECT_EQ(CO_TRY(co_await server.read_some(buffer)), 0U);
    EXPECT_EQ(CO_TRY(co_await server.read_some(buffer)), 0U);
    const Bytes answer = as_bytes("heard");
    CO_TRY(co_await server.write_all({&answer, 1}));
    EXPECT_EQ(CO_TRY(co_await client.read_some(buffer)), answer.size());
    EXPECT_EQ((co_await client.write_all({&last, 1})).error().kind(), ErrorKind::disconnected);
    co_return Result<void>{};
  };
  run_test(*loop_, talk(**ends.client, **ends.server));
}

TEST_F(TlsTest, AnEndWithoutCloseNotifyIsNotTheEndOfTheData) {
  Ends ends = connected();
  (*ends.client)->shutdown();
  EXPECT_EQ(first_read(**ends.server), ErrorKind::disconnected);
}

TEST_F(TlsTest, ShutdownEndsAPendingRead) {
  Ends ends = connected();
  Gate gate(*loop_);
  const auto read = [](Stream& stream) -> Task<> {
    std::array<std::byte, 8> buffer{};
    EXPECT_EQ((co_await stream.read_some(buffer)).error().kind(), ErrorKind::disconnected);
  };
  gate.spawn(read(**ends.client));
  (*ends.client)->shutdown();
  run(*loop_, gate.drained());
}

/// Hands over what is written, one byte at a time.
class DripStream final : public Stream {
 public:
  explicit DripStream(std::unique_ptr<Stream> inner) : inner_(std::move(inner)) {}
  Task<Result<std::size_t>> read_some(MutableBytes into) override {
    co_return co_await inner_->read_some(into.first(1));
  }
  Task<Result<void>> write_all(std::span<const Bytes> parts) override {
    co_return co_await inner_->write_all(parts);
  }
  void shutdown() override { inner_->shutdown(); }
  const std::string& peer() const override { return inner_->peer(); }

 private:
  std::unique_ptr<Stream> inner_;
};

TEST_F(TlsTest, RecordsMayArriveByteByByte) {
  auto transports = make_transports(*loop_);
  const auto talk = [](Loop& loop, auto client_context, auto server_context,
                       auto pair) -> Task<Result<void>> {
    std::unique_ptr<TlsStream> server;
    const auto serve = [](Loop& on, auto context, auto transport, auto& into) -> Task<> {
      into = MUST(co_await TlsStream::accept(on, context, std::move(transport), 10s));
    };
    Gate gate(loop);
    gate.spawn(
        serve(loop, server_context, std::make_unique<DripStream>(std::move(pair.second)), server));
    auto client = CO_TRY(co_await TlsStream::connect(
        loop, client_context, std::make_unique<DripStream>(std::move(pair.first)), "host-1.example",
        10s));
    co_await gate.drained();
    const auto sent = pattern(40'000, 5);
    std::vector<std::byte> received(sent.size());
    gate.spawn(write_bytes(*client, sent));
    CO_TRY(co_await server->read_exactly(received));
    co_await gate.drained();
    EXPECT_TRUE(sent == received);
    co_return Result<void>{};
  };
  run_test(*loop_, talk(*loop_, client(), server(), std::move(transports)));
}

TEST_F(TlsTest, ASilentPeerIsGivenUp) {
  auto transports = make_transports(*loop_);
  const auto outcome =
      run(*loop_, TlsStream::accept(*loop_, server(), std::move(transports.first), 20ms));
  ASSERT_FALSE(outcome.has_value());
  EXPECT_EQ(outcome.error().kind(), ErrorKind::timed_out);
}

TEST_F(TlsTest, APeerThatDoesNotSpeakTlsIsRefused) {
  auto transports = make_transports(*loop_);
  const auto talk = [](Loop& loop, auto context, auto pair) -> Task<Result<void>> {
    const Bytes nonsense = as_bytes("NBDMAGICIHAVEOPT and then some more bytes");
    CO_TRY(co_await pair.first->write_all({&nonsense, 1}));
    const auto outcome = co_await TlsStream::accept(loop, context, std::move(pair.second), 10s);
    EXPECT_FALSE(outcome.has_value());
    if (!outcome)
      EXPECT_EQ(outcome.error().kind(), ErrorKind::protocol) << outcome.error().message();
    co_return Result<void>{};
  };
  run_test(*loop_, talk(*loop_, server(), std::move(transports)));
}

TEST_F(TlsTest, APeerThatHangsUpDuringTheHandshakeIsDisconnected) {
  auto transports = make_transports(*loop_);
  transports.second.reset();
  const auto outcome =
      run(*loop_, TlsStream::accept(*loop_, server(), std::move(transports.first), 10s));
  EXPECT_EQ(outcome.error().kind(), ErrorKind::disconnected);
}

/// A transport whose received bytes can be spoilt.
class SpoiltStream final : public Stream {
 public:
  SpoiltStream(std::unique_ptr<Stream> inner, const bool& spoil)
      : inner_(std::move(inner)), spoil_(spoil) {}
  Task<Result<std::size_t>> read_some(MutableBytes into) override {
    const std::size_t got = CO_TRY(co_await inner_->read_some(into));
    if (spoil_ && got > 0) into[got - 1] ^= std::byte{1};
    co_return got;
  }
  Task<Result<void>> write_all(std::span<const Bytes> parts) override {
    co_return co_await inner_->write_all(parts);
  }
  void shutdown() override { inner_->shutdown(); }
  const std::string& peer() const override { return inner_->peer(); }

 private:
  std::unique_ptr<Stream> inner_;
  const bool& spoil_;
};

TEST_F(TlsTest, AChangedByteIsNoticed) {
  bool spoil = false;
  auto transports = make_transports(*loop_);
  const auto talk = [](Loop& loop, auto client_context, auto server_context, auto pair,
                       bool& spoiling) -> Task<Result<void>> {
    std::unique_ptr<TlsStream> server;
    const auto serve = [](Loop& on, auto context, auto transport, auto& into) -> Task<> {
      into = MUST(co_await TlsStream::accept(on, context, std::move(transport), 10s));
    };
    Gate gate(loop);
    gate.spawn(serve(loop, server_context,
                     std::make_unique<SpoiltStream>(std::move(pair.second), spoiling), server));
    auto client = CO_TRY(co_await TlsStream::connect(loop, client_context, std::move(pair.first),
                                                     "host-1.example", 10s));
    co_await gate.drained();
    spoiling = true;
    const Bytes message = as_bytes("a message");
    CO_TRY(co_await client->write_all({&message, 1}));
    std::array<std::byte, 64> buffer{};
    const auto outcome = co_await server->read_some(buffer);
    EXPECT_FALSE(outcome.has_value());
    if (!outcome)
      EXPECT_EQ(outcome.error().kind(), ErrorKind::protocol) << outcome.error().message();
    EXPECT_FALSE((co_await server->read_some(buffer)).has_value()) << "the error must not go away";
    co_return Result<void>{};
  };
  run_test(*loop_, talk(*loop_, client(), server(), std::move(transports), spoil));
}

TEST_F(TlsTest, KeyUpdatesAreAnsweredWithinBounds) {
  // A TlsStream never asks for one; OpenSSL itself is the client here.
  auto transports = make_transports(*loop_);
  const auto talk = [](UringLoop& loop, auto client_context, auto server_context,
                       auto pair) -> Task<Result<void>> {
    std::unique_ptr<TlsStream> server;
    const auto serve = [](Loop& on, auto context, auto transport, auto& into) -> Task<> {
      into = MUST(co_await TlsStream::accept(on, context, std::move(transport), 10s));
    };
    Gate gate(loop);
    gate.spawn(serve(loop, server_context, std::move(pair.second), server));
    const std::unique_ptr<SSL, decltype([](SSL* ssl) { ::SSL_free(ssl); })> client(
        ::SSL_new(client_context->get()));
    BIO* in = ::BIO_new(::BIO_s_mem());
    BIO* out = ::BIO_new(::BIO_s_mem());
    ::SSL_set_bio(client.get(), in, out);
    ::SSL_set_connect_state(client.get());
    std::array<std::byte, 65536> buffer{};
    const auto flush = [&]() -> Bytes {
      const int length = ::BIO_read(out, buffer.data(), static_cast<int>(buffer.size()));
      return MutableBytes(buffer).first(static_cast<std::size_t>(std::max(length, 0)));
    };
    while (::SSL_do_handshake(client.get()) != 1) {
      const Bytes part = flush();
      CO_TRY(co_await pair.first->write_all({&part, 1}));
      const std::size_t got = CO_TRY(co_await pair.first->read_some(buffer));
      ::BIO_write(in, buffer.data(), static_cast<int>(got));
    }
    const Bytes finished = flush();
    CO_TRY(co_await pair.first->write_all({&finished, 1}));
    co_await gate.drained();
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(::SSL_key_update(client.get(), SSL_KEY_UPDATE_REQUESTED), 1);
      std::size_t written = 0;
      EXPECT_EQ(::SSL_write_ex(client.get(), "x", 1, &written), 1);
      const Bytes part = flush();
      CO_TRY(co_await pair.first->write_all({&part, 1}));
      std::array<std::byte, 16> heard{};
      EXPECT_EQ(CO_TRY(co_await server->read_some(heard)), 1U);
    }
    const Bytes answer = as_bytes("answer");
    CO_TRY(co_await server->write_all({&answer, 1}));
    std::array<char, 16> text{};
    std::size_t got = 0;
    while (::SSL_read_ex(client.get(), text.data(), text.size(), &got) != 1) {
      const std::size_t more = CO_TRY(co_await pair.first->read_some(buffer));
      EXPECT_GT(more, 0U);
      ::BIO_write(in, buffer.data(), static_cast<int>(more));
    }
    EXPECT_EQ(std::string(text.data(), got), "answer");
    co_return Result<void>{};
  };
  run_test(*loop_, talk(*loop_, client(), server(), std::move(transports)));
}

TEST_F(TlsTest, FilesThatAreMissingOrBrokenAreNamed) {
  const auto complain = [&](const ContextResult& context, ErrorKind kind, const std::string& name) {
    ASSERT_FALSE(context.has_value());
    EXPECT_EQ(context.error().kind(), kind) << context.error().message();
    EXPECT_NE(context.error().message().find(files_ / name), std::string::npos)
        << context.error().message();
  };
  std::ofstream(files_ / "ca-crl.pem") << "nonsense";
  complain(TlsContext::client(files_.path()), ErrorKind::invalid_argument, "ca-crl.pem");
  std::filesystem::remove(files_ / "ca-crl.pem");
  std::ofstream(files_ / "client-cert.pem") << "nonsense";
  complain(TlsContext::client(files_.path()), ErrorKind::invalid_argument, "client-cert.pem");
  std::filesystem::remove(files_ / "ca-cert.pem");
  complain(TlsContext::client(files_.path()), ErrorKind::not_found, "ca-cert.pem");
  complain(TlsContext::server(files_.path(), Clients::required), ErrorKind::not_found,
           "ca-cert.pem");
  EXPECT_TRUE(TlsContext::server(files_.path(), Clients::ignored).has_value());
  // A key that belongs to another certificate.
  std::filesystem::copy_file(files_ / "client-key.pem", files_ / "server-key.pem",
                             std::filesystem::copy_options::overwrite_existing);
  complain(TlsContext::server(files_.path(), Clients::ignored), ErrorKind::invalid_argument,
           "server-key.pem");
  std::filesystem::remove(files_ / "server-key.pem");
  complain(TlsContext::server(files_.path(), Clients::ignored), ErrorKind::not_found,
           "server-key.pem");
}

}  // namespace
}  // namespace berth
